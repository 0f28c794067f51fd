import os
import subprocess
import sys

import pytest

from limbeck import store, tables
from limbeck.errors import UserError
from limbeck.types import Message, Problem, Trace, Verdict

PROBLEM = Problem("p1", (Message("user", "2+2?"),), "4", {"name": "number"}, "sums", "", {"n": 1})
TRACE = Trace("t1", "p1", 0, "<think>2+2</think>4", "stop", "me", 3, 5, (1, 2), (-0.5, -0.25))


def test_rows_come_back_as_they_were(tmp_path):
    tables.write_part(tmp_path / "problems", tables.to_table("problems", [PROBLEM]))
    assert tables.read_problems(tmp_path / "problems") == [PROBLEM]
    tables.write_part(tmp_path / "traces", tables.to_table("traces", [TRACE]))
    (back,) = tables.read_traces(tmp_path / "traces")
    assert (back.text, back.completion_tokens, back.token_ids) == (TRACE.text, 5, None)
    row = tables.read_table(tmp_path / "traces").to_pylist()[0]
    assert (row["token_ids"], row["logprobs"]) == ([1, 2], [-0.5, -0.25])
    unjudged = Verdict("t1", None, None, "timeout")
    tables.write_part(tmp_path / "verdicts", tables.to_table("verdicts", [unjudged]))
    assert tables.read_verdicts(tmp_path / "verdicts") == [unjudged]


def test_parts_are_numbered_and_read_in_order(tmp_path):
    for text in "abc":
        table = tables.to_table("verdicts", [Verdict(text, True, None, "correct")])
        tables.write_part(tmp_path, table)
    assert [v.trace_id for v in tables.read_verdicts(tmp_path)] == ["a", "b", "c"]
    assert [p.name[:10] for p in sorted(tmp_path.iterdir())] == [f"part-0000{i}" for i in range(3)]


def test_a_flipped_bit_in_a_part_is_noticed(tmp_path):
    traces = [Trace(f"t{i}", "p", i, f"text {i} " * 20, "stop", "me") for i in range(200)]
    path = tables.write_part(tmp_path, tables.to_table("traces", traces))
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 3] ^= 4  # in the middle of the data pages
    path.write_bytes(bytes(flipped))
    with pytest.raises(UserError, match=r"part-00000-\w+\.parquet: changed on disk"):
        tables.read_traces(tmp_path)


def test_digests_do_not_depend_on_key_order_and_seeds_fit_64_bits():
    assert store.digest({"a": 1, "b": [2]}) == store.digest({"b": [2], "a": 1})
    assert store.digest({"a": 1}) != store.digest({"a": 2})
    seeds = {store.seed_of(0, "sample", "p", i) for i in range(1000)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    store.write_json(path, {"a": 1})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        store.write_json(path, {"a": 2})
    assert store.read_json(path) == {"a": 1}


def test_jsonl_leaves_out_a_torn_last_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    store.append_json(path, {"a": "ä"})
    with open(path, "ab") as file:
        file.write(b'{"a": ')
    assert store.read_jsonl(path) == [{"a": "ä"}]


def test_a_run_folder_has_one_holder_and_a_dead_one_holds_nothing(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from limbeck import store\n"
        "with store.locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {holder.pid} "), store.locked(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with store.locked(tmp_path):
        pass


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="no such table"):
        tables.read_table(tmp_path / "nothing")


def test_a_field_that_the_first_row_lacks_is_not_lost(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2, "weight": 0.5}')  # nor a last line without its end
    rows = tables.read_table(path).to_pylist()
    assert rows == [{"a": 1, "weight": None}, {"a": 2, "weight": 0.5}]
    path.write_text('{"a": 1}\n{"a": "x"}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl: its rows are no table"):
        tables.read_table(path)
