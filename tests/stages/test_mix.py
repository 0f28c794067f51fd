"""One data set out of several: what is drawn, in which order, and what is said of it."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

import limbeck
from limbeck import card, tables
from limbeck.errors import UserError, UserErrors
from limbeck.folder import StageFolder
from limbeck.stages import mix


def row(name, number, **changed):
    asked = {"role": "user", "content": f"{name} {number}?"}
    return {
        "id": f"{name}{number}",
        "problem_id": f"p{number}",
        "messages": [asked, {"role": "assistant", "content": "x" * (number % 7 + 1)}],
        "domain": "whatever",
        "source": f"maker/{name}",
        "teacher": "big",
        "weight": 0.5,
        **changed,
    }


def dataset(folder, name, num, licence=None, parts=2):
    rows = [row(name, i) for i in range(num)]
    for part in range(parts):
        tables.write_part(folder / name, tables.to_table("dataset", rows[part::parts]))
    licences = {f"maker/{name}": licence} if licence else {}
    card.write(folder / name, name=name, sampled=None, dropped={}, licences=licences, lineage=[])
    return str(folder / name)


def mixed(folder, **settings):
    folder.mkdir(parents=True)
    summary = mix.run(mix.Config(**settings), StageFolder(folder, "mix", "key"))
    return summary, tables.read_table(folder / "dataset").to_pylist()


@pytest.fixture
def parts(tmp_path):
    return {
        "math": dataset(tmp_path, "math", 300, "MIT"),
        "code": dataset(tmp_path, "code", 100, "Apache-2.0"),
        "talk": dataset(tmp_path, "talk", 20),
    }


def test_caps_weights_domains_and_accounts(tmp_path, parts):
    num, weight = {"math": 120, "talk": 50}, {"talk": 3.0}
    summary, rows = mixed(tmp_path / "run/mix", parts=parts, num=num, weight=weight)
    assert len(rows) == len({r["id"] for r in rows}) == 240
    by_domain = {name: [r for r in rows if r["domain"] == name] for name in parts}
    assert {name: len(found) for name, found in by_domain.items()} == {
        "math": 120, "code": 100, "talk": 20
    }  # fmt: skip
    assert all(r["source"] == f"maker/{r['domain']}" for r in rows)
    assert {r["weight"] for r in by_domain["talk"]} == {1.5}
    assert {r["weight"] for r in by_domain["math"]} == {0.5}
    originals = {f"math{i}": row("math", i)["messages"] for i in range(300)}
    assert all(r["messages"] == originals[r["id"]] for r in by_domain["math"])
    assert summary["accounts"] == {
        "inputs": 420, "ok": 240, "rejected": 180, "failed": 0, "poison": 0
    }  # fmt: skip
    told = {r["part"]: r for r in summary["parts"]}
    assert told["talk"]["wanted"] == 50
    assert told["talk"]["found"] == told["talk"]["taken"] == 20
    assert told["math"]["characters"] == sum(
        len(m["content"]) for r in by_domain["math"] for m in r["messages"]
    )
    assert sum(r["share_of_text"] for r in told.values()) == pytest.approx(1, abs=1e-3)
    assert "talk: 20 of 50 wanted" in (tmp_path / "run/mix/log.txt").read_text()


def test_a_larger_cap_has_the_rows_of_a_smaller_one(tmp_path, parts):
    drawn = []
    for num in (10, 60, 250):
        _, rows = mixed(tmp_path / f"run{num}", parts=parts, num={"math": num})
        drawn.append({r["id"] for r in rows if r["domain"] == "math"})
        assert len(drawn[-1]) == num
    assert drawn[0] < drawn[1] < drawn[2]
    _, other = mixed(tmp_path / "other", parts=parts, num={"math": 10}, seed=1)
    assert {r["id"] for r in other if r["domain"] == "math"} != drawn[0]


def test_what_is_drawn_does_not_depend_on_order_or_files(tmp_path, parts):
    _, one = mixed(tmp_path / "one", parts=parts, num={"math": 40})
    again = dict(parts, math=dataset(tmp_path / "again", "math", 300, parts=7))
    _, other = mixed(tmp_path / "other", parts=dict(reversed(again.items())), num={"math": 40})
    assert one == other


def test_the_order_is_without_meaning(tmp_path, parts, monkeypatch):
    monkeypatch.setattr(mix, "ROWS_PER_PART", 32)
    monkeypatch.setattr(mix, "MAX_PILES", 5)
    _, rows = mixed(tmp_path / "run/mix", parts=parts, num={"math": 30})
    files = tables.parts(tmp_path / "run/mix/dataset")
    assert [pq.read_metadata(file).num_rows for file in files] == [32, 32, 32, 32, 22]
    assert len(rows) == len({r["id"] for r in rows}) == 150
    places = [i for i, r in enumerate(rows) if r["domain"] == "math"]
    # The mean of 30 places of 150, drawn without replacement, has a standard deviation of 7.1.
    assert abs(sum(places) / 30 - 74.5) < 4 * 7.1
    ids = [r["id"] for r in rows if r["domain"] == "code"]
    assert ids != sorted(ids)
    monkeypatch.undo()
    _, in_one_pile = mixed(tmp_path / "other/mix", parts=parts, num={"math": 30})
    assert in_one_pile == rows
    assert not any((tmp_path / "run/mix/shuffled").iterdir())


def test_a_row_of_two_parts_belongs_to_the_first(tmp_path, parts):
    both = {"first": parts["code"], "second": parts["code"], "math": parts["math"]}
    summary, rows = mixed(tmp_path / "run/mix", parts=both, num={"first": 30})
    assert len({r["id"] for r in rows}) == len(rows) == 400
    assert sum(r["domain"] == "first" for r in rows) == 30
    assert sum(r["domain"] == "second" for r in rows) == 70
    assert summary["dropped"] == {"over the cap": 70, "in an earlier part, or twice": 30}


def test_a_row_that_stands_twice_in_a_part_is_taken_once(tmp_path):
    twice = [row("a", 1), row("a", 2), row("a", 1)]
    tables.write_part(tmp_path / "twice", tables.to_table("dataset", twice))
    summary, rows = mixed(tmp_path / "run/mix", parts={"a": str(tmp_path / "twice")})
    assert sorted(r["id"] for r in rows) == ["a1", "a2"]
    assert summary["dropped"]["in an earlier part, or twice"] == 1


def test_the_card_carries_the_licences_over(tmp_path, parts):
    mixed(tmp_path / "run/mix", parts=parts, num={"math": 10})
    folder = tmp_path / "run/mix/dataset"
    assert card.read_licences(folder) == {"maker/math": "MIT", "maker/code": "Apache-2.0"}
    text = (folder / "README.md").read_text()
    assert "| maker/talk | 20 | 15.4% | not stated |" in text
    assert "| looked at | 420 | 100.0% |" in text
    assert "| dropped: over the cap | 290 | 69.0% |" in text
    assert "math: 10 rows of math, at most 10" in text


def test_a_source_of_two_licences_says_both(tmp_path, parts):
    other = dataset(tmp_path / "other", "math", 5, "CC BY 4.0")
    mixed(tmp_path / "run/mix", parts={**parts, "more": other})
    said = card.read_licences(tmp_path / "run/mix/dataset")
    assert said["maker/math"] == "MIT, CC BY 4.0"


def test_a_table_of_messages_alone(tmp_path, parts):
    lines = [json.dumps({"messages": row("own", i)["messages"], "note": i}) for i in (1, 2, 2)]
    (tmp_path / "own.jsonl").write_text("\n".join(lines) + "\n")
    own = {"own": str(tmp_path / "own.jsonl"), "code": parts["code"]}
    _, rows = mixed(tmp_path / "run/mix", parts=own)
    found = [r for r in rows if r["domain"] == "own"]
    assert len(found) == 2
    assert {r["source"] for r in found} == {"own.jsonl"}
    assert {r["weight"] for r in found} == {1.0}
    assert [m["content"] for m in found[0]["messages"]] in (["own 1?", "xx"], ["own 2?", "xxx"])


def test_tables_of_strangers_whose_ids_are_the_same(tmp_path):
    for name, ids in (("one", (0, 1, 1)), ("other", ("0", "1", "2")), ("third", (None, None, 2))):
        lines = [
            json.dumps({"id": id, "messages": row(name, i)["messages"], "teacher": None})
            for i, id in enumerate(ids)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    given = {name: str(tmp_path / f"{name}.jsonl") for name in ("one", "other", "third")}
    _, rows = mixed(tmp_path / "run/mix", parts=given)
    assert len(rows) == len({r["id"] for r in rows}) == len({r["problem_id"] for r in rows}) == 9
    assert {r["teacher"] for r in rows} == {""}


@pytest.mark.parametrize(
    "bad",
    [
        {"messages": None},
        {"messages": [{"role": "user", "content": "?"}]},
        {"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "x"}]},
        {**row("a", 1), "weight": -1},
        {"messages": [{"role": "user"}, {"role": "assistant"}]},
    ],
)
def test_a_row_of_a_stranger_that_is_none(tmp_path, bad):
    lines = [json.dumps(r) for r in (row("a", 0), bad)]
    (tmp_path / "own.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"own.jsonl: row 1 is no row of a data set"):
        mixed(tmp_path / "run/mix", parts={"a": str(tmp_path / "own.jsonl")})


def test_our_rows_in_one_file_keep_their_ids(tmp_path, parts):
    table = tables.read_table(parts["code"])
    pq.write_table(table, tmp_path / "code.parquet")
    both = {"code": parts["code"], "again": str(tmp_path / "code.parquet")}
    summary, _ = mixed(tmp_path / "run/mix", parts=both)
    assert summary["dropped"]["in an earlier part, or twice"] == 100


def test_mistakes_are_told_by_plan(tmp_path, parts):
    recipe = {"name": "r", "stages": {"mix": {"parts": parts, "num": {"maths": 3}}}}
    with pytest.raises(UserErrors, match=r"no part is called 'maths'; did you mean 'math'"):
        limbeck.plan(recipe)
    recipe["stages"]["mix"] = {"parts": {}}
    with pytest.raises(UserErrors, match="parts is empty"):
        limbeck.plan(recipe)


def test_memory_stays_flat(tmp_path):
    """64 MB of text: all of it in memory would be seen; so would an index of 1 KiB a row."""
    code = (
        "import resource, sys; from pathlib import Path; from limbeck.folder import StageFolder;"
        "from limbeck.stages import mix; from limbeck import progress; progress.quiet = True;"
        "here = Path(sys.argv[1]);"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "mix.ROWS_READ = 64; mix.ROWS_PER_PART = 64; (here / 'run').mkdir();"
        "config = mix.Config(parts={'a': str(here / 'a'), 'b': str(here / 'b')}); before = used();"
        "mix.run(config, StageFolder(here / 'run', 'mix')); print(used() - before)"
    )
    for name in "ab":
        for part in range(8):
            long = [
                row(name, part * 400 + i, messages=[
                    {"role": "user", "content": "?"},
                    {"role": "assistant", "content": f"{part} {i} " * 1700},
                ]) for i in range(400)
            ]  # fmt: skip
            tables.write_part(tmp_path / name, tables.to_table("dataset", long))
    command = [sys.executable, "-c", code, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert int(found.stdout) < 40 * 1024, found.stderr  # KiB
