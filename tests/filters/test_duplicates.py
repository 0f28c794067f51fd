"""Duplicates: exact and near, planted among real traces, and held against a plain computation."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from limbeck.filters.duplicates import Index, exact_duplicates, near_duplicates, rows_per_band
from limbeck.filters.words import runs, slices, wholes, words

pytest.importorskip("rensa")


def batches(texts, rows=10**9):
    table = pa.table({"text": pa.array(texts), "question": pa.array(texts[::-1])})
    return table.to_batches(max_chunksize=rows)


def reasons(rule, texts, rows=10**9, **knobs):
    return [reason for said in rule(batches(texts, rows), **knobs) for reason in said]


def shingles(text, num=5):
    tokens = words(pa.array([text]), signs=True).hashes.tolist()
    return {tuple(tokens[i : i + num]) for i in range(max(1, len(tokens) - num + 1))}


def jaccard(a, b):
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


@pytest.fixture(scope="module")
def traces():
    """Real texts of 250 words, no two with much in common."""
    if "LIMBECK_TEST_DATA" not in os.environ:
        pytest.skip("LIMBECK_TEST_DATA is not set: no real traces here")
    folder = Path(os.environ["LIMBECK_TEST_DATA"]) / "reasoning_traces"
    with gzip.open(folder / "r1_distill_general.jsonl.gz", "rt") as file:
        texts = [json.loads(line)["response"] for line in file][::10]
    tokens = [word for text in texts for word in text.split(" ")]
    return [" ".join(tokens[i : i + 250]) for i in range(0, len(tokens) - 250, 250)][:600]


def edited(text, num_words, rng):
    tokens = text.split(" ")
    for place in rng.sample(range(len(tokens)), num_words):
        tokens[place] = rng.choice(["and", "seven", "thus", "otherwise", "x"])
    return " ".join(tokens)


# -- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("$x^2+3x = 5$", "X² + 3 x  =\n5"),
        ("10\\,km \\quad away", "10 km away"),
        ("Café — naïve", "cafe\u0301 nai\u0308ve"),
        ("ＡＢＣ １２", "abc 12"),
        ("\\left( a \\right)", "(a)"),
        ("don’t stop…", "don't stop"),
        ("我们 来看", "我们来看。"),
        ("函数f(x)在三角形ABC中", "函数 $f(x)$ 在三角形 $ABC$ 中"),
    ],
)
def test_what_reads_the_same_has_the_same_words(one, other):
    first, second = words(pa.array([one])).hashes, words(pa.array([other])).hashes
    assert first.tolist() == second.tolist() != []


def test_words_know_their_texts():
    texts = ["one two", "", "three", None, "two", "...", "我们", "Привет мир", "é"]
    found = words(pa.array(texts))
    assert np.diff(found.offsets).tolist() == [2, 0, 1, 0, 1, 0, 2, 2, 1]
    assert found.hashes[1] == found.hashes[3]
    for text, start, stop in zip(texts, found.offsets[:-1], found.offsets[1:], strict=True):
        alone = words(pa.array([text], pa.string()))
        assert alone.hashes.tolist() == found.hashes[start:stop].tolist()
    assert len(set(wholes(found).tolist()) - {0}) == 6


def test_signs_are_words_where_they_are_asked_for():
    plus, minus = pa.array(["2 + 3"]), pa.array(["2 - 3"])
    assert wholes(words(plus)) == wholes(words(minus))
    assert wholes(words(plus, signs=True)) != wholes(words(minus, signs=True))


def test_runs_are_those_of_a_plain_loop():
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abcdef", k=rng.randrange(9))) for _ in range(200)]
    found = runs(words(pa.array(texts)), 4)
    seen: dict[tuple[str, ...], int] = {}
    for number, text in enumerate(texts):
        tokens = text.split()
        plain = [tuple(tokens[i : i + 4]) for i in range(max(1, len(tokens) - 3))] if tokens else []
        hashes = found.hashes[found.offsets[number] : found.offsets[number + 1]].tolist()
        assert len(hashes) == len(plain)
        for run, key in zip(plain, hashes, strict=True):
            assert seen.setdefault(run, key) == key
    assert len(set(seen.values())) == len(seen) > 300


def test_slices_are_bounded_and_lose_nothing():
    texts = pa.array(["a" * 100_000] * 7 + [None, "b" * 10**6, "c"])
    pieces = list(slices(texts))
    assert pa.concat_arrays(pieces).equals(texts)
    assert [len(piece) for piece in pieces] == [2, 2, 2, 2, 1, 1]


# -- exact --------------------------------------------------------------------------------------


def test_exact_duplicates():
    texts = ["A  b\nc", "a b c", "a b d", "ａ b c", "A B C ", "2+3", "2-3", "2 + 3"]
    expected = [None, "duplicate", None, "duplicate", "duplicate", None, None, None]
    assert reasons(exact_duplicates, texts) == expected
    assert reasons(exact_duplicates, texts, rows=1) == expected
    assert reasons(exact_duplicates, ["x", "y", "y"], of="question") == [None, "duplicate", None]


# -- near ---------------------------------------------------------------------------------------


def test_bands_let_pairs_at_the_threshold_meet():
    for threshold in (0.5, 0.7, 0.8, 0.9, 0.99):
        rows = rows_per_band(threshold, 128)
        assert 1 - (1 - threshold**rows) ** (128 // rows) >= 0.98
        assert 1 - (1 - threshold ** (rows + 1)) ** (128 // (rows + 1)) < 0.98


def test_planted_near_duplicates_are_found_and_nothing_else(traces):
    rng = random.Random(0)
    copies = [edited(text, rng.randrange(13), rng) for text in traces]
    likeness = np.array([jaccard(*pair) for pair in zip(traces, copies, strict=True)])
    said = np.array([r is not None for r in reasons(near_duplicates, [*traces, *copies])])
    originals, found = said[: len(traces)], said[len(traces) :]
    # An estimate from 128 minima is off by 0.035 (1 sigma) at 0.8: three of these on either side.
    assert found[likeness >= 0.9].mean() >= 0.99
    assert found[likeness < 0.7].mean() <= 0.01
    assert (likeness >= 0.9).sum() > 50 < (likeness < 0.7).sum()
    print(f"recall {found[likeness >= 0.8].mean():.3f}, of originals {originals.mean():.4f}")
    assert originals.mean() <= 0.01


def test_the_first_stays_whatever_the_batches(traces):
    rng = random.Random(1)
    texts = [edited(text, 2, rng) for text in traces[:60] for _ in range(4)]
    rng.shuffle(texts)
    whole = reasons(near_duplicates, texts)
    assert whole == reasons(near_duplicates, texts, rows=7) == reasons(near_duplicates, texts, 1)
    stayed = [text for text, reason in zip(texts, whole, strict=True) if reason is None]
    assert 60 <= len(stayed) <= 62
    assert set(reasons(near_duplicates, stayed)) == {None}


def test_greedy_as_a_plain_loop_over_signatures():
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2**32, (20, 128), np.uint32)
    signatures = centres[rng.integers(20, size=900)].copy()
    noise = rng.random(signatures.shape) < rng.uniform(0, 0.4, (900, 1))
    signatures[noise] = rng.integers(0, 2**32, noise.sum(), np.uint32)
    stayed: list[np.ndarray] = []
    expected = []
    for row in signatures.astype(np.uint8):
        expected.append(any((row == other).mean() >= 0.8 for other in stayed))
        if not expected[-1]:
            stayed.append(row)
    index, found = Index(0.8, 128), []
    for start in range(0, 900, 123):
        found += index.add(signatures[start : start + 123])
    assert 100 < sum(expected) < 800
    assert np.mean(np.array(found) == expected) >= 0.99  # a pair at 0.8 fails to meet once in 70
    assert not any(new and not old for new, old in zip(expected[:20], found[:20], strict=True))


def test_short_texts_are_alike_only_if_they_are_the_same():
    texts = ["What is 3 + 4?", "What is 3 * 4?", "what is 3+4", "What is 3 + 5?", "", "..."]
    said = reasons(near_duplicates, texts)
    assert said == [None, None, "near_duplicate", None, None, "near_duplicate"]
    assert reasons(near_duplicates, []) == []


def test_what_is_remembered_of_a_row_is_less_than_a_kilobyte():
    index = Index(0.8, 128)
    rng = np.random.default_rng(0)
    for _ in range(5):
        index.add(rng.integers(0, 2**32, (4096, 128), np.uint32))
    assert index.nbytes <= 512 * 5 * 4096
