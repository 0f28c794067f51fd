"""The journal of paid answers: whatever happens to its bytes, no record is ever wrong."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.journal import HEAD, MARK, Journal, parse

ANSWERS = [{"id": f"t{i}", "text": "ä🧪LJ1\n" * (i % 7), "logprobs": [-0.5 * i]} for i in range(40)]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
records = st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=6)


def written(path, rows):
    """The bytes of a journal of these records."""
    path.unlink(missing_ok=True)
    journal = Journal(path)
    for row in rows:
        journal.append(row)
    os.close(journal.file)
    return path.read_bytes()


def is_subsequence(some, of):
    rest = iter(of)
    return all(any(row == other for other in rest) for row in some)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("journal") / "traces.journal"


@settings(max_examples=100, deadline=None)
@given(records, st.data())
def test_any_prefix_of_its_bytes_is_a_prefix_of_its_records(path, rows, data):
    whole = written(path, rows)
    assert parse(whole).records == rows
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    journal = Journal(path)
    assert journal.records == rows[: len(journal.records)]
    assert not journal.quarantined
    more = {"id": "behind the tear"}
    journal.append(more)
    os.close(journal.file)
    assert parse(path.read_bytes()).records == [*journal.records[:-1], more]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.lists(st.binary(max_size=30), max_size=4))
def test_arbitrary_bytes_never_raise(noise, payloads):
    """Noise, marks in it, and payloads with a right CRC that are no records."""
    import zlib

    forged = b"".join(MARK + HEAD.pack(len(p), zlib.crc32(p)) + p for p in payloads)
    for data in (noise, noise + MARK + noise, forged + noise, noise + forged):
        found = parse(data)
        assert all(isinstance(row, dict) for row in found.records)
        assert found.end + found.torn == len(data)


def test_a_flipped_bit_costs_its_own_record_at_most(tmp_path):
    path, rng = tmp_path / "journal", random.Random(3)
    whole = written(path, ANSWERS)
    for _ in range(300):
        place, bit = rng.randrange(len(whole)), rng.randrange(8)
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        found = parse(bytes(flipped))
        assert len(found.records) == len(ANSWERS) - 1, (place, bit)
        assert is_subsequence(found.records, ANSWERS)
        assert found.broken or found.torn, (place, bit)


def test_a_broken_middle_is_set_aside_and_the_rest_goes_on(tmp_path):
    path = tmp_path / "journal"
    whole = bytearray(written(path, ANSWERS))
    start = whole.index(MARK, 200)
    whole[start + len(MARK) + HEAD.size + 2] ^= 1
    path.write_bytes(whole)
    for _ in range(2):  # as long as the journal lives, it says so
        journal = Journal(path)
        (place,) = journal.quarantined
        assert place.read_bytes().startswith(MARK)
        assert len(journal.records) == len(ANSWERS) - 1
        os.close(journal.file)
    journal = Journal(path)
    journal.append({"id": "new"})
    os.close(journal.file)
    assert parse(path.read_bytes()).records[-1] == {"id": "new"}


def test_an_empty_or_swapped_file_is_no_answer(tmp_path):
    path = tmp_path / "journal"
    for content in (b"", b"PAR1" * 100, b'{"id": "t1"}\n'):
        path.write_bytes(content)
        journal = Journal(path)
        assert journal.records == []
        assert journal.torn == len(content)
        os.close(journal.file)


def test_half_surrogates_survive(tmp_path):
    rows = [{"text": "\ud800 half"}]
    assert parse(written(tmp_path / "journal", rows)).records == rows


WRITER = """
import sys
from pathlib import Path
from limbeck.journal import Journal
journal = Journal(Path(sys.argv[1]))
for i in range(len(journal.records), 10**6):
    journal.append({"id": i, "text": "x" * 3000})
    print(i, flush=True)
"""


def test_what_was_acknowledged_survives_sigkill(tmp_path):
    path, rng = tmp_path / "journal", random.Random(5)
    acknowledged = -1
    for _ in range(5):
        command = [sys.executable, "-c", WRITER, str(path)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.uniform(0, 0.1))
        child.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *map(int, child.stdout.read().split()[:-1])])
        child.wait()
        found = parse(path.read_bytes())
        assert [row["id"] for row in found.records] == list(range(len(found.records)))
        assert len(found.records) > acknowledged
        assert not found.broken


def test_a_full_disk_costs_only_the_record_that_did_not_fit(tmp_path):
    path = tmp_path / "journal"

    def fills_up():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    command = [sys.executable, "-c", WRITER, str(path)]
    child = subprocess.run(command, capture_output=True, text=True, preexec_fn=fills_up)
    assert child.returncode == 1
    assert "File too large" in child.stderr
    acknowledged = len(child.stdout.split())
    assert acknowledged > 10
    journal = Journal(path)
    assert [row["id"] for row in journal.records] == list(range(acknowledged))
    assert journal.torn
    journal.append({"id": "once there is space"})
    os.close(journal.file)
    assert not parse(path.read_bytes()).broken


def test_clear_forgets_and_remove_leaves_nothing(tmp_path):
    journal = Journal(tmp_path / "journal")
    journal.append({"id": 1})
    journal.clear()
    assert parse(journal.path.read_bytes()).records == journal.records == []
    journal.append({"id": 2})
    assert parse(journal.path.read_bytes()).records == [json.loads('{"id": 2}')]
    journal.remove()
    assert not list(tmp_path.iterdir())
