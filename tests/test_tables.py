"""Tables read batch by batch are the tables that are read whole, and as well guarded."""

import json

import pyarrow as pa
import pytest

from limbeck import tables
from limbeck.errors import UserError

SCHEMA = tables.SCHEMAS["verdicts"]
ROWS = [
    {
        "trace_id": f"t{n}",
        "correct": n % 3 == 0,
        "extracted": str(n) * 50,
        "reason": "wrong",
        "score": n / 100,
    }
    for n in range(100)
]


@pytest.fixture
def folder(tmp_path):
    for start in range(0, 100, 40):
        part = pa.Table.from_pylist(ROWS[start : start + 40], schema=SCHEMA)
        tables.write_part(tmp_path / "verdicts", part)
    return tmp_path / "verdicts"


def read(path, **more):
    return [row for batch in tables.iter_batches(path, **more) for row in batch.to_pylist()]


@pytest.mark.parametrize("again", [False, True])
def test_batches_are_the_table(folder, again):
    assert read(folder, again=again) == ROWS == tables.read_table(folder).to_pylist()
    batches = list(tables.iter_batches(folder, ["reason", "trace_id"], rows=7, again=again))
    assert max(batch.num_rows for batch in batches) == 7
    assert {tuple(batch.schema.names) for batch in batches} == {("reason", "trace_id")}
    assert read(next(folder.iterdir()), again=again) in (ROWS[:40], ROWS[40:80], ROWS[80:])


def test_a_table_of_before_lacks_what_came_later(folder, tmp_path):
    old = pa.Table.from_pylist(ROWS[:3], schema=SCHEMA.remove(SCHEMA.get_field_index("score")))
    path = tables.write_part(tmp_path / "old", old)
    assert tables.read_verdicts(path.parent)[0].score is None
    assert read(path, columns=["score", "reason"]) == [{"score": None, "reason": "wrong"}] * 3
    tables.write_part(path.parent, pa.Table.from_pylist(ROWS[3:5], schema=SCHEMA))
    scores = [verdict.score for verdict in tables.read_verdicts(path.parent)]
    assert scores == [None] * 3 + [0.03, 0.04]


def test_lines_of_json(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert read(path, rows=9) == ROWS
    assert read(path, columns=["trace_id"]) == [{"trace_id": row["trace_id"]} for row in ROWS]


@pytest.mark.parametrize("again", [False, True])
def test_what_changed_on_disk_is_refused(folder, again):
    part = tables.parts(folder)[1]
    content = bytearray(part.read_bytes())
    content[100:140] = bytes(40)
    part.write_bytes(content)
    with pytest.raises(UserError, match=part.name):
        read(folder, again=again)


def test_what_is_not_there_is_named(folder, tmp_path):
    with pytest.raises(UserError, match='Field "weight" does not exist'):
        read(folder, columns=["trace_id", "weight"])
    with pytest.raises(UserError, match="no such table"):
        read(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no parts"):
        read(tmp_path / "empty")
