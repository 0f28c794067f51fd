"""Token ids as they are written become pieces of text that can be sent: whole characters, no part
of a stop string, thinking apart from the answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from limbeck.chat import CLOSE, OPEN
from limbeck.types import Finish

HALF = "\ufffd"  # what a decoder writes for bytes that are no character, perhaps not yet


def num_held(text: str, marks: Collection[str]) -> int:
    """How many characters at the text's end may become one of the marks."""
    longest = max((len(mark) for mark in marks), default=1)
    for length in range(min(longest - 1, len(text)), 0, -1):
        tail = text[-length:]
        if any(len(mark) > length and mark.startswith(tail) for mark in marks):
            return length
    return 0


@dataclass
class Reader:
    """Reads a growing list of ids, each time from where it stopped.

    Decodes from the last-but-one stop on, as a decoder may need what stands before: the text is
    that of all ids decoded at once, in a time that does not grow with them.
    """

    decode: Callable[[Sequence[int]], str]
    stops: tuple[str, ...] = ()
    begin: int = 0
    end: int = 0
    told: int = 0
    pending: str = ""

    def read(self, ids: Sequence[int], finish: Finish | None, text_end: int | None) -> str:
        """The text that is new, of which at the end nothing is held back."""
        before = self.decode(ids[self.begin : self.end])
        text = self.decode(ids[self.begin :])
        if finish or not text.endswith(HALF):
            self.pending += text[len(before) :]
            self.begin, self.end = self.end, len(ids)
        if finish:
            keep = 0 if text_end is None else max(0, self.told + len(self.pending) - text_end)
        else:
            keep = num_held(self.pending, self.stops)
        cut = len(self.pending) - keep
        piece, self.pending = self.pending[:cut], self.pending[cut:]
        self.told += len(piece)
        return piece

    def is_behind(self, ids: Sequence[int]) -> bool:
        """Whether some of the ids' text is held back."""
        return bool(self.pending) or self.end < len(ids)


@dataclass
class Splitter:
    """Takes a text apart, piece by piece: thinking up to the first `</think>`, then the answer.

    It thinks if its text, behind white space, begins with `<think>`.
    """

    place: str = "start"
    pending: str = field(default="")

    def split(self, piece: str, is_last: bool) -> tuple[str, str]:
        """(thinking, answer) that the piece adds."""
        self.pending += piece
        if self.place == "start":
            begun = self.pending.lstrip()
            if begun.startswith(OPEN):
                self.place, self.pending = "thinking", begun.removeprefix(OPEN)
            elif OPEN.startswith(begun) and not is_last:
                return "", ""
            else:
                self.place = "answer"
        thinking = self._thinking(is_last) if self.place == "thinking" else ""
        if self.place == "thinking":
            return thinking, ""
        answer, self.pending = self.pending, ""
        return thinking, answer

    def _thinking(self, is_last: bool) -> str:
        before, close, after = self.pending.partition(CLOSE)
        if close:
            self.place, self.pending = "answer", after
            return before
        cut = len(before) - (0 if is_last else num_held(before, (CLOSE,)))
        self.pending = before[cut:]
        return before[:cut]
