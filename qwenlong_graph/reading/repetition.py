"""Notices that a reply repeats itself without end, while it is still being written.

A model that has fallen into a loop writes until its limit of tokens; Qwen3's thoughts are known for
it, above all in 4-bit builds (docs/decisions/0010-repetition-loops.md).

The measure: of the last `SPAN` n-grams of `GRAM` words or marks, how many had occurred `TIMES`
times before among the `MEMORY` n-grams ahead of them. A reply loops where that share reaches
`THRESHOLD`. Drafts that are copied out once or twice, tables, boilerplate and code stay below it;
`benchmarks/repetition.py` measures both sides.
"""

from __future__ import annotations

import re
from collections import deque

__all__ = ["GRAM", "MEMORY", "SPAN", "THRESHOLD", "TIMES", "UNIT", "RepetitionDetector"]

GRAM = 8
TIMES = 3
SPAN = 512
THRESHOLD = 0.9
MEMORY = 8192

# A number that follows one of so many before it counts up.
_NUMBERS = 16

# A word; a character of a script without spaces; a stretch of a ruled line; any other mark. Words
# and rules that never end are cut into pieces.
_ALONE = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"
UNIT = re.compile(
    rf"[^\W{_ALONE}]{{1,16}}|\w|-{{1,8}}|={{1,8}}|\*{{1,8}}|\.{{1,8}}|~{{1,8}}|#{{1,8}}|[^\w\s]"
)
"""What the measure calls a word or mark."""


class RepetitionDetector:
    """Takes the pieces of a reply as they come; how it is cut into pieces makes no difference.

    The work for a word is constant, and so is the memory, whatever the length of the reply.
    """

    def __init__(
        self,
        *,
        gram: int = GRAM,
        times: int = TIMES,
        span: int = SPAN,
        threshold: float = THRESHOLD,
        memory: int = MEMORY,
    ) -> None:
        self._times = times
        self._memory = memory
        self._needed = threshold * span
        self._open_word = ""
        self._numbers: deque[int] = deque(maxlen=_NUMBERS)
        self._gram: tuple[str, ...] = ("",) * gram
        self._grams: deque[tuple[str, ...]] = deque()
        self._counts: dict[tuple[str, ...], int] = {}
        self._span: deque[bool] = deque((False,) * span)
        self._repeated = 0
        self.is_loop = False

    @property
    def share(self) -> float:
        """The share of repeated n-grams among the last `span`."""
        return self._repeated / len(self._span)

    def feed(self, piece: str) -> bool:
        """Whether the reply, with this piece, is a loop; once it is, it stays one."""
        text = self._open_word + piece
        units = UNIT.findall(text)
        # The next piece may go on with the last word.
        self._open_word = units.pop() if units and not text[-1].isspace() else ""
        for unit in units:
            if self.is_loop:
                break
            self._take(unit)
        return self.is_loop

    def _take(self, unit: str) -> None:
        word = unit
        if unit.isdecimal():
            # What counts up is a repetition, and a column of figures is none.
            number = int(unit)
            if number - 1 in self._numbers and number not in self._numbers:
                word = "+1"
            self._numbers.append(number)
        gram = self._gram = (*self._gram[1:], word)
        seen = self._counts.get(gram, 0)
        self._counts[gram] = seen + 1
        self._grams.append(gram)
        if len(self._grams) > self._memory:
            self._forget(self._grams.popleft())
        is_repeated = seen >= self._times
        self._span.append(is_repeated)
        self._repeated += is_repeated - self._span.popleft()
        self.is_loop = self._repeated >= self._needed

    def _forget(self, gram: tuple[str, ...]) -> None:
        count = self._counts[gram]
        if count == 1:
            del self._counts[gram]
        else:
            self._counts[gram] = count - 1
