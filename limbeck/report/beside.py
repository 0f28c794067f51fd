"""Two numbers side by side: before and after a training, the paper's and one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.report import formats, sentences

Row = Mapping[str, Any]

VERDICTS = {
    "lost": "worse than before",
    "gained": "better than before",
    "kept": "as good as before",
    "not distinguishable": "cannot be told",
}


def forgetting(rows: Sequence[Row], results: Sequence[Row]) -> list[dict[str, Any]]:
    """What became of each ability, with the scores before and after where these are known."""
    scores = {(row["name"], row["split"], row["metric"]): row for row in results}
    found = []
    for row in rows:
        was, now = (
            scores.get((row[side], row["split"], row["metric"])) for side in ("before", "after")
        )
        told = {key: row[key] for key in ("after", "before", "split", "metric")}
        told |= {"was": formats.percent(was) if was else "–"}
        told |= {"now": formats.percent(now) if now else "–"}
        told |= {"difference": sentences.difference(row)}
        verdict = VERDICTS.get(row["verdict"], row["verdict"])
        found.append({**told, "verdict": verdict, "is_lost": row["verdict"] == "lost"})
    return found


def published(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The paper's figures beside one's own, both as the page shows scores."""
    return [
        {
            **row,
            "here": formats.percent(row),
            "there": formats.percent({**row, "value": row["published"], "low": None}),
        }
        for row in rows
    ]
