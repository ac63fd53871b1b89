"""Doubles that ship with the package, for its own tests and for those of programs built on it."""

from __future__ import annotations

__all__: list[str] = []
