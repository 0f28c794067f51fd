"""What a model card is written in: tables and lines in which names of strangers stay names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from limbeck import progress


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    body = [[plain(cell).replace("|", "&#124;") for cell in row] for row in rows]
    lines = [heads, ["---"] * len(heads), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """In one line, and no HTML, links or images: names come from strangers."""
    line = progress.visible(" ".join(text.split())).replace("&", "&amp;").replace("](", "]\\(")
    return line.replace("<", "&lt;")
