"""Random and broken inputs to what reads them: the right thing, or a mistake that is named."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck import journal
from limbeck import recipe as recipes
from limbeck.chat import CLOSE, OPEN, split_think
from limbeck.config import written
from limbeck.errors import UserError, UserErrors
from limbeck.recipe import Recipe

RECIPE = (Path(__file__).parent / "mistakes" / "recipe.yaml").read_text()
RECIPE = RECIPE.replace("questions.jsonl", str(Path(__file__))).replace(
    "my_engine:connect", "worked"
)
quick = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

fewer = settings(quick, max_examples=60)  # each waits for the disk

# -- the journal --------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
records = st.lists(
    st.dictionaries(st.text(max_size=5) | st.just(journal.MARK.decode("latin-1")), values),
    max_size=6,
)


def written_journal(rows: list[dict]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        made = journal.Journal(Path(folder) / "journal")
        for row in rows:
            made.append(row)
        os.close(made.file)
        made.close() if hasattr(made, "close") else None
        return (Path(folder) / "journal").read_bytes()


def read_journal(data: bytes) -> list[dict]:
    """What opening it finds; opened again, it must find the same and nothing to mend."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        path.write_bytes(data)
        opened = journal.Journal(path)
        found = opened.records
        os.close(opened.file)
        again = journal.parse(path.read_bytes())
        assert (again.records, again.torn) == (found, 0)
        return found


@fewer
@given(records, st.data())
def test_any_beginning_of_a_journal_gives_the_first_records(rows, data):
    whole = written_journal(rows)
    assert read_journal(whole) == rows
    cut = data.draw(st.integers(0, len(whole)))
    found = read_journal(whole[:cut])
    assert found == rows[: len(found)]
    assert cut < len(whole) or len(found) == len(rows)


@fewer
@given(records, st.data())
def test_a_changed_byte_never_makes_a_record_that_was_not_written(rows, data):
    whole = bytearray(written_journal(rows))
    if not whole:
        return
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    found = read_journal(bytes(whole))
    left = iter(rows)
    assert all(any(row == other for other in left) for row in found)  # in order, nothing new
    assert len(found) >= len(rows) - 1


@fewer
@given(st.binary(max_size=200), records, st.binary(max_size=200))
def test_rubbish_around_a_journal_takes_nothing_from_it(before, rows, after):
    assert read_journal(before + written_journal(rows) + after) == rows


# -- recipes ------------------------------------------------------------------------------------

words = st.sampled_from(sorted(set(re.findall(r"\w+|\./\w+/\w+|[^\w\s]", RECIPE))))
yaml_bits = st.sampled_from(
    ["\n", "\n  ", "\n    ", ": ", "- ", "{", "}", "[", "]", ", ", "&a ", "*a", "<<: ", "!!int ",
     "!!python/name:os.system ", "? ", "| ", "'", '"', "# ", "~", "1e999", ".nan", "-0", "0x10",
     "2024-02-30", "\t", "\x00", "\ufeff", "\ud7ff", "%", "---\n", "...\n", "\\", "1_0", "=", "!"]
)  # fmt: skip
texts = st.lists(words | yaml_bits | st.text(max_size=4), max_size=40).map("".join)


def loads(source: object, overrides: dict | None = None, size: str = "") -> Recipe | None:
    """The recipe, or None for a mistake that says where, what and the way out."""
    told = []
    try:
        return recipes.load(source, overrides, size)  # type: ignore[arg-type]
    except UserErrors as several:
        told = several.errors
    except UserError as mistake:
        told = [mistake]
    assert told and all(mistake.where and mistake.what and mistake.way_out for mistake in told)
    return None


def loads_text(text: str) -> Recipe | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        return loads(path)


@quick
@given(texts)
def test_a_random_text_is_no_recipe_but_a_mistake(text):
    assert loads_text(text) is None


@quick
@given(st.data())
def test_a_damaged_recipe_is_a_recipe_or_a_mistake(data):
    text = RECIPE
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        stop = min(len(text), start + data.draw(st.integers(0, 12)))
        text = text[:start] + data.draw(texts | words | yaml_bits) + text[stop:]
    found = loads_text(text)
    assert found is None or [written(stage.config) for stage in found.stages]


@quick
@given(st.dictionaries(st.sampled_from([*recipes.KEYS, "x"]) | st.text(), values), values)
def test_a_random_mapping_is_no_recipe_but_a_mistake(mapping, stages):
    assert loads(mapping) is None
    assert loads({**mapping, "stages": stages}) is None
    assert loads({"stages": {"sft": stages, "curate": stages}}) is None


# -- settings that override ---------------------------------------------------------------------

GOOD = yaml.safe_load(RECIPE.replace("1e-3", "0.001"))
knobs = st.sampled_from([f"{s}.{knob}" for s, entry in GOOD["stages"].items() for knob in entry])
dotted = st.lists(words | st.text(max_size=3), max_size=4).map(".".join)


@quick
@given(st.lists(st.tuples(dotted, texts) | st.tuples(dotted, words), max_size=3))
def test_overrides_give_a_recipe_or_a_mistake(pairs):
    before = json.dumps(GOOD)
    try:
        overrides = recipes.parse_overrides([f"{key}={text}" for key, text in pairs])
    except UserError:
        overrides = {}
    loads(GOOD, overrides)
    assert json.dumps(GOOD) == before  # what was given is left alone


@quick
@given(knobs | dotted, values, st.sampled_from(["", "ci", "x"]))
def test_a_random_value_anywhere_gives_a_recipe_or_a_mistake(key, value, size):
    loads(GOOD, {key: value}, size)


def test_the_recipe_that_is_damaged_is_a_good_one():
    assert loads(GOOD) is not None


# -- thinking -----------------------------------------------------------------------------------

pieces = st.lists(
    st.sampled_from([OPEN, CLOSE, "<think", "think>", "</", "\n", " "]) | st.text(max_size=6),
    max_size=12,
).map("".join)


@quick
@given(pieces)
def test_thinking_and_answer_are_parts_of_the_text(text):
    thought = split_think(text)
    if thought.answer is None:
        assert OPEN in text  # unfinished: somebody opened it
        assert thought.thinking is not None
    else:
        assert text.endswith(thought.answer)
        assert OPEN not in thought.answer or CLOSE not in text
        assert CLOSE not in thought.answer
    if thought.thinking is not None:
        assert thought.thinking in text
    assert (thought.thinking is None) == (OPEN not in text and CLOSE not in text)


@quick
@given(pieces.filter(lambda text: OPEN not in text and CLOSE not in text), pieces)
def test_what_is_put_together_comes_apart(answer, thinking):
    thinking = thinking.replace(OPEN, "")
    thought = split_think(f"{OPEN}{thinking}{CLOSE}{answer}")
    if OPEN not in thinking + answer:
        assert (thought.thinking, thought.answer) == (thinking, answer)
    assert split_think(answer).answer == answer
