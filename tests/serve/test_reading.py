"""Ids become text that can be sent: never half a character, never a part of a stop string."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.serve.reading import Reader, Splitter, num_held
from limbeck.serve.telling import num_within


def decode(octets: list[int]) -> str:
    """A tokenizer whose tokens are bytes."""
    return bytes(octets).decode(errors="replace")


def cut_at(octets: bytes, cuts: list[int]) -> list[bytes]:
    """What has come by each of the cuts, and at last everything."""
    places = sorted({min(cut, len(octets)) for cut in cuts} | {len(octets)})
    return [octets[:place] for place in places]


texts = st.text(alphabet="aäß漢🙂ST. \n<>/think", max_size=60)
cuts = st.lists(st.integers(0, 200), max_size=30)


@given(texts, cuts)
def test_pieces_are_the_text_and_whole_characters(text, cuts):
    reader, pieces = Reader(decode), []
    parts = cut_at(text.encode(), cuts)
    for part in parts[:-1]:
        pieces.append(reader.read(list(part), None, None))
        assert not pieces[-1] or "\ufffd" not in pieces[-1]
    pieces.append(reader.read(list(parts[-1]), "stop", None))
    assert "".join(pieces) == text


@given(texts, cuts, st.sampled_from([("STOP",), ("ST", "TOP"), ("\n\n",), ("🙂.", "aa")]))
def test_no_part_of_a_stop_string_is_told(text, cuts, stops):
    text = text.replace(stops[0], "")
    if any(stop in text for stop in stops):
        return
    written = text + stops[0]
    end, stop = min((written.find(stop), stop) for stop in stops if stop in written)
    octets = written[: end + len(stop)].encode()  # an engine stops where the first one is whole
    reader, told = Reader(decode, stops), ""
    parts = cut_at(octets, cuts)
    for part in parts[:-1]:
        told += reader.read(list(part), None, None)
        assert text[:end].startswith(told)
    told += reader.read(list(octets), "stop", end)
    assert told == text[:end]


def test_bytes_that_are_no_character_are_told_in_the_end():
    reader = Reader(decode)
    assert reader.read([0x61, 0xC3], None, None) == ""
    assert reader.read([0x61, 0xC3], "length", None) == "a\ufffd"


@pytest.mark.parametrize(
    ("text", "marks", "held"),
    [("abST", ["STOP"], 2), ("abSTOP", ["STOP"], 0), ("a", [], 0), ("\n", ["\n\nQ:", "x"], 1)],
)
def test_num_held(text, marks, held):
    assert num_held(text, marks) == held


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("<think>a</think>b", "a", "b"),
        (" \n<think>a</think>\nb", "a", "\nb"),
        ("no tags", "", "no tags"),
        ("a</think>b", "", "a</think>b"),
        ("<think>never ends </thin", "never ends </thin", ""),
        ("<think>a</think>b</think>c<think>", "a", "b</think>c<think>"),
        ("  <thin", "", "  <thin"),
        ("", "", ""),
    ],
)
def test_splitter_says_the_same_in_any_pieces(text, thinking, answer):
    for size in (1, 2, 3, 100):
        splitter, told = Splitter(), ["", ""]
        places = [*range(0, len(text), size), len(text)]
        for begin, end in pairwise(places) if text else [(0, 0)]:
            for kind, piece in enumerate(splitter.split(text[begin:end], end == len(text))):
                told[kind] += piece
        assert told == [thinking, answer]


def test_num_within():
    assert num_within(decode, list(b"abcdef"), 3) == 3
    assert num_within(decode, list("aä".encode()), 2) == 3
    assert num_within(decode, list(b"ab"), 0) == 0
