"""What an audit found: errors by verifier and set, as a table, as JSON, and one by one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from limbeck.audit.peers import PACKAGES

HEAD = ("verifier", "set", "rows", "accepts", "rejects", "undecided", "agree")


@dataclass
class Score:
    """Errors on labelled rows. What nobody could judge counts as not accepted."""

    rows: int = 0
    false_accepts: int = 0
    false_rejects: int = 0
    undecided: int = 0

    def add(self, accepted: bool | None, label: bool) -> None:
        """Counts one row."""
        self.rows += 1
        self.undecided += accepted is None
        self.false_accepts += accepted is True and not label
        self.false_rejects += accepted is not True and label

    @classmethod
    def total(cls, scores: Iterable[Score]) -> Score:
        """The sum of several."""
        return cls(*map(sum, zip(*[asdict(score).values() for score in scores], strict=True)))


@dataclass
class Row:
    """A verifier on a set, or on a family of the hostile set.

    Rows without a label are left out. `disputed` are the errors on rows that are labelled wrong
    though the answer is the gold answer as it is written; they count in `ours` and `peers`, too.
    """

    verifier: str
    set: str
    family: str
    checked: bool
    hostile: bool
    unlabelled: int = 0
    ours: Score = field(default_factory=Score)
    peers: defaultdict[str, Score] = field(default_factory=lambda: defaultdict(Score))
    disputed: defaultdict[str, Score] = field(default_factory=lambda: defaultdict(Score))

    def json(self) -> dict[str, Any]:
        """As one object; a peer that is not installed, or was not asked, is null."""
        names = ("verifier", "set", "family", "checked", "hostile", "unlabelled")
        own = {name: getattr(self, name) for name in names}
        peers = {name: self.peers.get(name) for name in PACKAGES}
        scores = {name: asdict(score) if score else None for name, score in peers.items()}
        disputed = {name: asdict(score) for name, score in self.disputed.items()}
        return {**own, **asdict(self.ours), **scores, "disputed": disputed}


@dataclass(frozen=True)
class Miss:
    """A row on which a verifier and the label differ."""

    set: str
    verifier: str
    id: str
    gold: str
    extracted: str | None
    label: bool
    reason: str
    disputed: bool = False


@dataclass(frozen=True)
class Audit:
    """Every verifier on every set, and every miss."""

    counts: list[Row]
    misses: list[Miss]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The same for programs: one flat object a row."""
        return [row.json() for row in self.counts]

    def holds(self) -> bool | None:
        """Whether the target does; None where math-verify or a half of the sets is missing.

        The target: on the checked labels at most half of math-verify's errors of either kind, and
        no false accept at all in the hostile set.
        """
        checked = self.checked()
        hostile = [row.ours for row in self.counts if row.hostile]
        if any(score.false_accepts for score in hostile):
            return False
        if not checked or not hostile or "math_verify" not in checked:
            return None
        ours, theirs = checked["ours"], checked["math_verify"]
        return (
            ours.false_accepts <= theirs.false_accepts / 2
            and ours.false_rejects <= theirs.false_rejects / 2
        )

    def checked(self) -> dict[str, Score]:
        """The totals on the checked labels, ours and those of the peers."""
        rows = [row for row in self.counts if row.checked]
        names = [name for name in PACKAGES if rows and all(name in row.peers for row in rows)]
        ours = {"ours": Score.total(row.ours for row in rows)} if rows else {}
        return ours | {name: Score.total(row.peers[name] for row in rows) for name in names}

    def disputed(self) -> dict[str, Score]:
        """The part of `checked` that is labelled wrong though the gold answer was given."""
        rows = [row for row in self.counts if row.checked and row.disputed]
        names = {name for row in rows for name in row.disputed}
        return {name: Score.total(row.disputed[name] for row in rows) for name in names}

    def text(self) -> str:
        """A table for people, totals, and whether the target holds."""
        lines = [_line(HEAD, [f"{name} a/r" for name in PACKAGES])]
        lines += [_row_line(row) for row in self.counts if not row.hostile]
        if checked := self.checked():
            peers = [_errors(checked.get(name)) for name in PACKAGES]
            lines += ["", _line(_cells("", "all checked labels", checked["ours"]), peers)]
        if disputed := self.disputed():
            name, peers = "of these disputed", [_errors(disputed.get(name)) for name in PACKAGES]
            lines.append(_line(_cells("", name, disputed["ours"]), peers))
        hostile = [row for row in self.counts if row.hostile]
        if hostile:
            lines += ["", "hostile set, by family"] + [_row_line(row) for row in hostile]
        unlabelled = sum(row.unlabelled for row in self.counts)
        says = {True: "holds", False: "does not hold", None: "cannot be told from these sets"}
        lines += [
            "",
            f"left out: {unlabelled:,} rows without a label; disputed: labelled wrong though the "
            "answer is the gold answer as written",
            "target (at most half of math-verify's errors of either kind on the checked labels, "
            f"no false accept in the hostile set): {says[self.holds()]}",
        ]
        return "\n".join(lines)

    def listing(self) -> str:
        """One line for each miss."""
        return "\n".join(
            f"{miss.set}  {miss.verifier}  {miss.id}  gold {_short(miss.gold)}  extracted "
            f"{_short(miss.extracted or '')}  {miss.reason}, labelled "
            f"{'right' if miss.label else 'wrong'}{' (disputed)' if miss.disputed else ''}"
            for miss in self.misses
        )


def _row_line(row: Row) -> str:
    name = row.family or f"{row.set}{' *' if row.checked else ''}"
    peers = [_errors(row.peers.get(peer)) for peer in PACKAGES]
    return _line(_cells(row.verifier, name, row.ours), peers)


def _cells(verifier: str, name: str, score: Score) -> tuple[str, ...]:
    wrong = score.false_accepts + score.false_rejects
    agree = f"{100 * (1 - wrong / score.rows):.2f} %" if score.rows else "-"
    counts = (score.rows, score.false_accepts, score.false_rejects, score.undecided)
    return (verifier, name, *(f"{count:,}" for count in counts), agree)


def _errors(score: Score | None) -> str:
    return f"{score.false_accepts}/{score.false_rejects}" if score else "-"


def _line(cells: Iterable[str], peers: Iterable[str]) -> str:
    verifier, name, *counts = cells
    numbers = "".join(f"{count:>10}" for count in counts)
    return f"{verifier:<9} {name:<32}{numbers}" + "".join(f"{peer:>17}" for peer in peers)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 80 else f"{text[:38]} … {text[-38:]}")
