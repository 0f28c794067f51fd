"""The data card: what a data set holds, for people, for `datasets.load_dataset` and for the Hub."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import yaml

from limbeck import progress, secrets, store, tables
from limbeck.errors import UserError

FRONT = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)
COUNTED = ("domain", "source", "teacher")
MAX_LISTED = 40  # lines of a table; the rest is summed up
NOT_STATED = "not stated"
ON_THE_HUB = re.compile(  # licences that the Hub knows by name
    r"apache-2\.0|mit|bsd-[23]-clause|a?gpl-3\.0|lgpl-3\.0|cc0-1\.0|odc-by|odbl|pddl|openrail|gemma"
    r"|cc-by(-nc)?(-sa|-nd)?-[234]\.[05]|cdla-permissive-[12]\.0|llama3(\.[123])?"
)
COLUMNS = {
    "id": "names the row; no two are the same",
    "problem_id": "names the question: several rows may answer the same one",
    "messages": "the conversation, `role` and `content` of each turn; the last is the assistant's, "
    "with its thinking, if it has any, in `<think>…</think>`",
    "domain": "the subject",
    "source": "the data set that the question was taken from",
    "teacher": "the model that wrote the answer, or the thinking before it; empty where the source "
    "brought all of it",
    "weight": "how much the row counts in the loss",
}


def write(
    folder: Path,
    *,
    name: str,
    sampled: int | None,
    dropped: Mapping[str, int],
    licences: Mapping[str, str],
    lineage: Sequence[str],
) -> Path:
    """Writes `README.md` into a folder of parts of the schema "dataset".

    `sampled` rows were looked at (None: nobody counted), `dropped` says why how many of them are
    not here; `licences` is source -> licence where it is known; `lineage` says, line by line, how
    the rows were made. The rows themselves are counted here.
    """
    counts = count(folder)
    kept = counts["source"].total()
    if sampled is not None and sampled != kept + sum(dropped.values()):
        what = f"{sampled} sampled, {dict(dropped)} dropped, {kept} kept"
        raise RuntimeError(f"{folder}: {what}: rows were lost")
    known = {source: licences[source] for source in sorted(counts["source"]) if source in licences}
    front = yaml.safe_dump(
        _front(name, known, counts["source"]), sort_keys=False, allow_unicode=True
    )
    sections = [
        f"# {_plain(name)}",
        "Conversations that end with an assistant's answer, for supervised fine-tuning: "
        f"{kept:,} rows, made with Limbeck.",
        *_funnel(sampled, dropped, kept),
        *_by_domain(counts["domain"]),
        *_by_source(counts["source"], known),
        *_by_teacher(counts["teacher"]),
        "## How it was made",
        "\n".join(f"- {_plain(line)}" for line in lineage) or "Nobody said.",
        "## Columns",
        _table(["column", "what it is"], ((f"`{name}`", what) for name, what in COLUMNS.items())),
        "## How to load it",
        '```python\nfrom datasets import load_dataset\n\nrows = load_dataset("PATH OR NAME OF THIS '
        'DATA SET", split="train")\n```',
    ]
    path = folder / "README.md"
    store.write_text(path, secrets.hidden(f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"))
    return path


def read_licences(folder: Path) -> dict[str, str]:
    """source -> licence, as a card in this folder says; empty where there is no card of ours."""
    path = folder / "README.md"
    if not folder.is_dir() or not path.is_file():
        return {}
    store.verify(path)
    match = FRONT.match(path.read_text(encoding="utf-8"))
    try:
        front = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        raise UserError(str(path), "its front matter is no YAML", "mend or remove it") from error
    licences = front.get("licences") if isinstance(front, dict) else None
    return {str(k): str(v) for k, v in licences.items()} if isinstance(licences, dict) else {}


def add_licences(licences: dict[str, str], told: Iterable[tuple[str, str]]) -> None:
    """Takes in more (source, licence); a source that is said to have several has them all."""
    for source, licence in told:
        known = licences.setdefault(source, licence).split(", ")
        new = [name for name in licence.split(", ") if name not in known]
        licences[source] = ", ".join([*known, *new])


def count(folder: Path) -> dict[str, Counter[str]]:
    """How many rows of each domain, source and teacher; reads these columns batch by batch."""
    counts: dict[str, Counter[str]] = {column: Counter() for column in COUNTED}
    for batch in tables.iter_batches(folder, list(COUNTED), rows=65_536, again=True):
        for column, counter in counts.items():
            for item in pc.value_counts(batch[column]).to_pylist():
                counter[item["values"] or ""] += item["counts"]
    return counts


def _front(name: str, licences: Mapping[str, str], sources: Iterable[str]) -> dict[str, Any]:
    """The metadata that `datasets` and the Hub read, and the licence of each source."""
    return {
        "pretty_name": name,
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "part-*.parquet"}],
            }
        ],
        "task_categories": ["text-generation"],
        "tags": ["limbeck", "conversational", "reasoning", "distillation"],
        **_licence({licences.get(source, NOT_STATED) for source in sources}),
        "licences": dict(licences),
    }


def _licence(licences: set[str]) -> dict[str, str]:
    """The Hub's words for a licence that covers every row, or for there being none."""
    names = {"-".join(licence.lower().split()) for licence in licences if licence != NOT_STATED}
    if not names:
        return {"license": "unknown"}
    if len(names) > 1 or NOT_STATED in licences:
        return {"license": "other", "license_name": "several-see-by-source"}
    name = names.pop()
    if ON_THE_HUB.fullmatch(name):
        return {"license": name}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", name).strip("-")}


def _funnel(sampled: int | None, dropped: Mapping[str, int], kept: int) -> list[str]:
    if sampled is None:
        return []
    ends = [("looked at", sampled), *_by_number(dropped, "dropped: "), ("**kept**", kept)]
    rows = ((what, f"{num:,}", _share(num, sampled)) for what, num in ends)
    return ["## What was kept", _table(["", "rows", "share"], rows)]


def _by_domain(counts: Counter[str]) -> list[str]:
    rows = ((name, f"{num:,}", _share(num, counts.total())) for name, num in _listed(counts))
    return ["## By domain", _table(["domain", "rows", "share"], rows)]


def _by_source(counts: Counter[str], licences: Mapping[str, str]) -> list[str]:
    rows = (
        (name, f"{num:,}", _share(num, counts.total()), licences.get(name, NOT_STATED))
        for name, num in _listed(counts)
    )
    words = "The licence is that of the source, and is about what was taken from there."
    if any(source not in licences for source in counts):
        words += (
            f" Where it is {NOT_STATED}, nobody told Limbeck: look it up at the source before"
            " these rows are passed on."
        )
    return ["## By source", _table(["source", "rows", "share", "licence"], rows), words]


def _by_teacher(counts: Counter[str]) -> list[str]:
    listed = _listed(counts, "none: as the source has it")
    rows = ((name, f"{num:,}", _share(num, counts.total())) for name, num in listed)
    words = "For what a teacher wrote its own terms of use hold, too: read them before training on"
    return ["## By teacher", _table(["teacher", "rows", "share"], rows), f"{words} these rows."]


def _listed(counts: Counter[str], nameless: str = NOT_STATED) -> list[tuple[str, int]]:
    """(name, rows), the most first; the tail of a long list summed up."""
    items = [(name or nameless, num) for name, num in _by_number(counts)]
    if len(items) <= MAX_LISTED:
        return items
    rest = items[MAX_LISTED - 1 :]
    return [*items[: MAX_LISTED - 1], (f"{len(rest):,} others", sum(num for _, num in rest))]


def _by_number(counts: Mapping[str, int], before: str = "") -> list[tuple[str, int]]:
    items = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(f"{before}{name}" if name else name, num) for name, num in items]


def _share(num: int, total: int) -> str:
    return f"{num / total:.1%}" if total else "-"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; numbers stand to the right."""
    ruler = ["---:" if head in ("rows", "share") else "---" for head in heads]
    body = [[_plain(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ruler, *body])


def _plain(text: str) -> str:
    """In one line, and no HTML, links or images: names come from strangers."""
    line = progress.visible(" ".join(text.split())).replace("&", "&amp;").replace("](", "]\\(")
    return re.sub(r"<(?!think>|/think>)", "&lt;", line)
