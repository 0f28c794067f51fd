"""The data card: what people and the Hub read of a data set."""

import subprocess
import sys

import pytest
import yaml

from limbeck import card, store, tables
from limbeck.errors import UserError


def row(number, **changed):
    messages = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    return {
        "id": f"row{number}",
        "problem_id": "p",
        "messages": messages,
        "domain": "sums",
        "source": "maker/set",
        "teacher": "big-model",
        "weight": 1.0,
        **changed,
    }


def write(folder, rows, parts=1, **said):
    for part in range(parts):
        tables.write_part(folder, tables.to_table("dataset", rows[part::parts]))
    told = {"name": "demo", "sampled": None, "dropped": {}, "licences": {}, "lineage": []}
    return card.write(folder, **{**told, **said})


def front(path):
    return yaml.safe_load(path.read_text().split("\n---\n")[0])


def test_the_funnel_stands_in_the_card_and_adds_up(tmp_path):
    rows = [row(i) for i in range(6)]
    dropped = {"unfinished": 1, "wrong": 3}
    text = write(tmp_path, rows, sampled=10, dropped=dropped).read_text()
    funnel = [line for line in text.splitlines() if line.startswith(("| looked", "| drop", "| **"))]
    assert funnel == [
        "| looked at | 10 | 100.0% |",
        "| dropped: wrong | 3 | 30.0% |",
        "| dropped: unfinished | 1 | 10.0% |",
        "| **kept** | 6 | 60.0% |",
    ]


def test_a_funnel_that_does_not_add_up_is_no_card(tmp_path):
    with pytest.raises(RuntimeError, match="rows were lost"):
        write(tmp_path, [row(1)], sampled=3, dropped={"wrong": 1})
    assert not (tmp_path / "README.md").exists()


def test_rows_are_counted_by_domain_source_and_teacher(tmp_path):
    rows = [
        row(1),
        row(2, domain="logic", source="other/set"),
        row(3, source="", teacher=""),
        row(4, teacher=None),
    ]
    text = write(tmp_path, rows, parts=2, licences={"maker/set": "MIT"}).read_text()
    assert "| sums | 3 | 75.0% |" in text
    assert "| logic | 1 | 25.0% |" in text
    assert "| maker/set | 2 | 50.0% | MIT |" in text
    assert "| other/set | 1 | 25.0% | not stated |" in text
    assert "| not stated | 1 | 25.0% | not stated |" in text
    assert "| big-model | 2 | 50.0% |" in text
    assert "nobody told Limbeck" in text
    assert "own terms of use" in text


@pytest.mark.parametrize(
    ("licences", "said"),
    [
        ({"maker/set": "MIT", "other/set": "mit"}, {"license": "mit"}),
        ({"maker/set": "CC BY 4.0", "other/set": "cc-by-4.0"}, {"license": "cc-by-4.0"}),
        ({"maker/set": "MIT"}, {"license": "other", "license_name": "several-see-by-source"}),
        ({}, {"license": "unknown"}),
        (
            {"maker/set": "House Rules", "other/set": "House Rules"},
            {"license": "other", "license_name": "house-rules"},
        ),
        (
            {"maker/set": "We're: {all} [ours]", "other/set": "We're: {all} [ours]"},
            {"license": "other", "license_name": "we-re-all-ours"},
        ),
        (
            {"maker/set": "MIT", "other/set": "MIT", "not/here": "GPL"},
            {"license": "mit"},
        ),
    ],
)
def test_a_licence_is_claimed_only_if_it_covers_every_row(tmp_path, licences, said):
    path = write(tmp_path, [row(1), row(2, source="other/set")], licences=licences)
    assert {k: v for k, v in front(path).items() if k.startswith("license")} == said
    here = {k: v for k, v in licences.items() if k != "not/here"}
    assert card.read_licences(tmp_path) == here


def test_licences_of_a_folder_without_a_card_of_ours(tmp_path):
    assert card.read_licences(tmp_path / "nowhere") == {}
    assert card.read_licences(tmp_path) == {}
    (tmp_path / "README.md").write_text("---\nlicences: [mit]\n---\nWritten by hand\n")
    assert card.read_licences(tmp_path) == {}
    (tmp_path / "README.md").write_text("---\n{[\n---\n")
    with pytest.raises(UserError, match="YAML"):
        card.read_licences(tmp_path)


def test_names_of_strangers_stay_text(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "v3ry-s3cret-and-long")
    rows = [
        row(
            1,
            domain="a|b\n# c ![x](http://x/y.png)",
            source="<script>x</script>",
            teacher="---\x1b[31m",
        )
    ]
    lineage = ["key v3ry-s3cret-and-long"]
    path = write(
        tmp_path,
        rows,
        name="x: [y]\n---",
        licences={rows[0]["source"]: "a: b\n---"},
        lineage=lineage,
    )
    text = path.read_text()
    assert "<script>" not in text.split("\n---\n", 1)[1]
    assert r"a\|b # c ![x]\(http" in text
    assert "\x1b" not in text
    assert "s3cret" not in text
    assert front(path)["pretty_name"] == "x: [y]\n---"
    assert card.read_licences(tmp_path) == {"<script>x</script>": "a: b\n---"}


def test_a_long_tail_is_summed_up(tmp_path):
    rows = [row(i, domain=f"d{i % 100:03}") for i in range(200)]
    text = write(tmp_path, rows).read_text()
    lines = text.partition("| domain | rows | share |")[2].partition("## By source")[0]
    listed = [int(line.split("|")[2]) for line in lines.strip().splitlines()[1:]]
    assert "| 61 others | 122 | 61.0% |" in lines
    assert len(listed) == card.MAX_LISTED
    assert sum(listed) == 200


def test_the_same_rows_make_the_same_card(tmp_path):
    rows = [row(i, domain=f"d{i % 7}") for i in range(50)]
    one = write(tmp_path / "one", rows, parts=1)
    other = write(tmp_path / "other", rows[::-1], parts=3)
    assert one.read_bytes() == other.read_bytes()


def test_datasets_loads_the_folder_and_nothing_beside_the_parts(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = [row(i) for i in range(10)]
    write(tmp_path / "data", rows, parts=3, licences={"maker/set": "mit"})
    (tmp_path / "data" / "notes.jsonl").write_text('{"other": 1}\n')
    (tmp_path / "data" / ".part-00009.parquet.broken").write_bytes(b"no")
    read = datasets.load_dataset(
        str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert read.num_rows == 10
    assert read.column_names == list(card.COLUMNS) == tables.SCHEMAS["dataset"].names
    assert sorted(read["id"]) == sorted(r["id"] for r in rows)
    assert read[0]["messages"] == rows[0]["messages"]


def test_the_card_is_of_the_stage_that_it_lies_in(tmp_path):
    folder = tmp_path / "stage" / "dataset"
    write(folder, [row(1)], licences={"maker/set": "mit"})
    files = store.hash_tree(tmp_path / "stage")
    store.write_sealed(tmp_path / "stage" / "stage.json", {"files": files})
    assert card.read_licences(folder) == {"maker/set": "mit"}
    (folder / "README.md").write_text("---\nlicences: {maker/set: apache-2.0}\n---\n")
    with pytest.raises(UserError, match="changed on disk"):
        card.read_licences(folder)


def test_counting_does_not_read_the_texts(tmp_path):
    """40 rows of 4 MB: a reader of whole rows would hold 160 MB of them."""
    code = (
        "import resource, sys; from pathlib import Path; from limbeck import card;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "assert card.count(Path(sys.argv[1]))['domain']['sums'] == 40;"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    long = [{"role": "assistant", "content": "word " * 800_000}]
    for _ in range(10):
        rows = [row(i, messages=long) for i in range(4)]
        tables.write_part(tmp_path, tables.to_table("dataset", rows))
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True)
    assert int(found.stdout) < 40 * 1024, found.stderr  # KiB
