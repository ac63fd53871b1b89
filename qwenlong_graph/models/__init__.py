"""Ways to a language model: finding out what a server is, starting one, calling it."""

from __future__ import annotations

__all__: list[str] = []
