"""The pure core: budgets, prompts, replies, evidence and the recurrence itself. No I/O.

Whoever drives it (the LangGraph nodes, a trainer's rollout, a test) brings the texts and the
model's replies; everything here is a function of values.
"""

from __future__ import annotations

__all__: list[str] = []
