"""Curation at the size of the paper: 800,000 traces through every kind of filter.

The corpus is made once, into a temporary folder, from real traces: cuts of a mean of 1.6 kB (or
whole ones, with `--full-length`) of which every sixth word is replaced, so that no two are alike,
with planted duplicates and contaminated rows. Then the whole stage runs in a process of its own.

    minutes          wall time of the stage
    rss_gib          peak of the resident memory of it and of all its children
    near_dedup       CPU time of datasketch over ours, on rows with the same planted duplicates
    metadata_filter  CPU time of datasets.map over ours: which rows have a finish and a length

    python bench/curate.py [--rows 800000] [--full-length] [--extended] [--quick] [--to FILE]

`--extended` lays the traces out as if half of each problem's samples had been added later. Needs
LIMBECK_TEST_DATA.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import measure
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from limbeck import memory, progress, tables
from limbeck.filters import duplicates
from limbeck.folder import StageFolder
from limbeck.problems import make_problem
from limbeck.stages import curate

Row = tuple[Any, ...]
SAMPLES = 4  # traces of each problem
CUT = 290  # words of a cut row, on average; 1.6 kB
REPLACED = 1 / 6
MARKUP = re.compile(r"</?think>|<\|[a-z_]+\|>|\\[()\[\]]|\\(?:begin|end)\{\w+\*?\}|\$+|```|\\boxed")
KINDS, SHARES = ["plain", "exact", "near", "text"], [0.978, 0.01, 0.01, 0.002]  # of the rows
ASKED = 0.004  # of the problems: they are evaluation problems in other letters
TARGETS = {"minutes": 15.0, "rss_gib": 2.0, "near_dedup": 3.0, "metadata_filter": 20.0}
NUM_FILES = 25  # of 4,096 rows, for the metadata filter
PAPER = (800_000, 5355, 3.2)  # R1's rows, their mean tokens, bytes a token of such text
PACKAGES = ("limbeck", "rensa", "datasketch", "datasets", "pyarrow", "numpy")
KEEP = [
    "correct",
    "finished",
    "well_formed",
    "readable",
    "one_language",
    "not_repetitive",
    "exact_duplicates",
    "near_duplicates",
    "decontaminated",
    {"name": "shortest", "num": 3},
]


# -- the corpus ---------------------------------------------------------------------------------


def rows_of(name: str) -> list[dict[str, Any]]:
    path = Path(os.environ["LIMBECK_TEST_DATA"]) / name
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
        return [json.loads(line) for line in file]


class Corpus:
    """Real traces as arrays of words, and rows cut out of them."""

    def __init__(self, full_length: bool, seed: int = 0):
        names = ["r1_distill_general", "qwen25_14b_olympiadbench_half"]
        if full_length:  # these answer the evaluation sets, whose questions they repeat
            names += ["r1_distill_math", "qwen25_math500", "sky_t1_aime24"]
        texts = [r["response"] for n in names for r in rows_of(f"reasoning_traces/{n}.jsonl.gz")]
        texts = [MARKUP.sub("", text) for text in texts]  # a cut would leave half of it
        split = [text.split(" ") for text in texts]
        known = {word: number for number, word in enumerate({w: 0 for s in split for w in s})}
        self.vocabulary = np.array([*known], object)
        self.words = np.array([known[word] for words in split for word in words], np.int32)
        self.lengths = [len(words) for words in split] if full_length else None
        self.random = np.random.default_rng(seed)
        self.questions = [row["question"] for row in rows_of("gsm8k/train.jsonl.gz")]

    def body(self) -> np.ndarray:
        """The words of a row that is like no other."""
        random = self.random
        length = int(random.choice(self.lengths) if self.lengths else random.normal(CUT, CUT / 4))
        length = min(max(length, 40), len(self.words) - 1)
        start = random.integers(len(self.words) - length)
        return self.changed(self.words[start : start + length], REPLACED)

    def changed(self, words: np.ndarray, share: float) -> np.ndarray:
        """The words with a share of them replaced by others of the corpus."""
        others = self.words[self.random.integers(len(self.words), size=len(words))]
        return np.where(self.random.random(len(words)) < share, others, words)

    def text(self, words: np.ndarray, said: str = "") -> str:
        thought = " ".join(self.vocabulary[words])
        return f"<think>\n{said}{thought}\n\nSo it is 4.\n</think>\n\nIt is \\boxed{{4}}."

    def question(self, number: int) -> str:
        asked = self.questions[number % len(self.questions)]
        return re.sub(r"\d+", lambda m: str(self.random.integers(2, 10**5)), asked)


def make(folder: Path, rows: int, full_length: bool, extended: bool) -> None:
    """Writes problems, traces, verdicts and the evaluation problems, part by part."""
    corpus = Corpus(full_length)
    held = [row["problem"] for row in rows_of("math/math500.jsonl")]
    held += [row["problem"] for row in rows_of("aime/aime_2024.jsonl")]
    evaluation = [asdict(make_problem(q, "4", verifier="number")) for q in dict.fromkeys(held)]
    tables.write_part(folder / "evaluation", tables.to_table("problems", evaluation))
    num_problems = rows // SAMPLES
    asks = corpus.random.random(num_problems) < ASKED
    for start in range(0, num_problems, 16_384):
        numbers = range(start, min(start + 16_384, num_problems))
        part = []
        for number in numbers:
            asked = (
                _disguised(held[number % len(held)]) if asks[number] else corpus.question(number)
            )
            made = make_problem(asked, "4", verifier="number", domain="math")
            part.append({**asdict(made), "id": f"{number:016x}"})
        tables.write_part(folder / "problems", tables.to_table("problems", part))
    traces = _traces(corpus, _order(num_problems, extended), asks, held)
    for start in range(0, rows, 4096):
        part = [next(traces) for _ in range(min(4096, rows - start))]
        for kind, made in zip(("traces", "verdicts"), zip(*part, strict=True), strict=True):
            columns = [list(column) for column in zip(*made, strict=True)]
            table = pa.table(columns, schema=tables.SCHEMAS[kind])
            tables.write_part(folder / kind, table)


def _order(num_problems: int, extended: bool) -> Iterator[tuple[int, int]]:
    """(problem, sample index) of each row, in the order in which they lie on disk."""
    half = SAMPLES // 2
    for indices in [range(half), range(half, SAMPLES)] if extended else [range(SAMPLES)]:
        yield from ((problem, index) for problem in range(num_problems) for index in indices)


def _disguised(question: str) -> str:
    return f"Please solve:  {question.upper().replace(',', ' ,')} !"


def _traces(
    corpus: Corpus, order: Iterator[tuple[int, int]], asks: np.ndarray, held: list[str]
) -> Iterator[tuple[Row, Row]]:
    """Rows of traces and of verdicts; an id's first letter tells what was planted."""
    random, recent = corpus.random, deque[np.ndarray](maxlen=1000)
    for row, (problem, index) in enumerate(order):
        kind = "question" if asks[problem] else random.choice(KINDS, p=SHARES)
        if kind in ("exact", "near") and not recent:
            kind = "plain"
        words, said = corpus.body(), ""
        if kind in ("exact", "near"):
            words = recent[random.integers(len(recent))]
            words = corpus.changed(words, 0.012) if kind == "near" else words
        elif kind == "text":
            said = f"The task: {held[row % len(held)]}\n"
        text = corpus.text(words, said)
        text = text.replace(" ", "  ") if kind == "exact" else text
        wrong = kind == "plain" and random.random() < 0.25
        cut = kind == "plain" and random.random() < 0.04
        name = f"{kind[0]}{row:023x}"
        tokens = len(text) // 4
        finish = "length" if cut else "stop"
        yield (
            (name, f"{problem:016x}", index, text, finish, "teacher", 100, tokens, None, None),
            (name, not wrong, "4", "wrong" if wrong else "correct"),
        )
        if kind == "plain" and not wrong and not cut:
            recent.append(words)


# -- the stage ----------------------------------------------------------------------------------


class Clock:
    """CPU seconds of each filter, of reading and of writing: whoever was asked last pays."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()
        self.owners, self.since = ["writing"], time.process_time()

    def switch(self, change: Callable[[], Any]) -> None:
        now = time.process_time()
        self.seconds[self.owners[-1]] += now - self.since
        self.since = now
        change()

    def timed(self, owner: str, items: Iterator[Any], count: Callable[[Any], int]) -> Iterator[Any]:
        """The same items; the time that they take is this owner's, unless it asks another."""
        while True:
            self.switch(lambda: self.owners.append(owner))
            item = next(items, None)
            self.switch(self.owners.pop)
            if item is None:
                return
            self.rows[owner] += count(item)
            yield item


def run_stage(folder: Path, pipe: Connection) -> None:
    """The whole of curate; tells how long it took and what it said."""
    progress.quiet = True
    memory.keep_freed()
    clock, indices = Clock(), []
    read, reasons, index = curate.windows.Plan.read, curate._reasons, duplicates.Index

    def timed_read(plan: Any, scratch: Path) -> Iterator[Any]:
        return clock.timed("reading", read(plan, scratch), lambda window: len(window.traces))

    def timed_reasons(rule: Any, left: Iterator[Any]) -> Iterator[Any]:
        return clock.timed(rule.name, reasons(rule, left), len)

    def kept_index(*given: Any) -> duplicates.Index:
        indices.append(index(*given))
        return indices[-1]

    curate.windows.Plan.read, curate._reasons = timed_read, timed_reasons
    duplicates.Index = kept_index
    paths = {name: str(folder / name) for name in ("problems", "traces", "verdicts")}
    held = {"name": "decontaminated", "problems": [str(folder / "evaluation")]}
    keep = [held if rule == "decontaminated" else rule for rule in KEEP]
    config = curate.Config(**paths, keep=keep)
    wall, cpu = time.monotonic(), time.process_time()
    summary = curate.run(config, StageFolder(folder / "curate", "curate"))
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    clock.switch(lambda: None)
    phases = {name: (clock.seconds[name], clock.rows[name]) for name in clock.seconds}
    index_bytes = sum(one.nbytes for one in indices) + size_of_set(summary["sampled"])
    told = {"wall_s": wall, "cpu_s": cpu, "summary": summary, "phases": phases}
    pipe.send({**told, "index_bytes": index_bytes})


def size_of_set(num: int) -> int:
    """Bytes of a set of so many hashes of 16 bytes: what `exact_duplicates` remembers."""
    hashes = {number.to_bytes(16, "little") for number in range(num)}
    return sys.getsizeof(hashes) + sum(map(sys.getsizeof, hashes))


def peak_rss(process: multiprocessing.Process) -> int:
    """The largest sum of the resident bytes of a process and its children while it runs."""
    peak = 0
    while process.is_alive():
        peak = max(peak, sum(map(_rss, _family(process.pid or 0))))
        process.join(0.05)
    return peak


def _family(pid: int) -> list[int]:
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [
                child for number in path.read_text().split() for child in _family(int(number))
            ]
        except OSError:
            continue
    return found


def _rss(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def whole_stage(folder: Path) -> dict[str, Any]:
    """What the stage took, and the recall of what was planted."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=run_stage, args=(folder, theirs))
    process.start()
    theirs.close()
    peak = peak_rss(process)
    told = ours.recv()
    told["rss_gib"] = peak / 2**30
    found, planted = Counter[str](), Counter[str]()
    for batch in tables.iter_batches(folder / "curate" / "decisions", again=True):
        columns = (batch[name].to_pylist() for name in ("trace_id", "dropped"))
        for name, reason in zip(*columns, strict=True):
            planted[name[0]] += 1
            found[f"{name[0]} {reason}"] += 1
    told |= {"planted": planted, "found": found}
    return told


def report(told: dict[str, Any], rows: int, num_bytes: int, disk_bytes: int) -> None:
    """Prints it for people."""
    wall, cpu, summary = told["wall_s"], told["cpu_s"], told["summary"]
    print(f"{rows:,} rows, {num_bytes / 1e9:.2f} GB of text ({disk_bytes / 1e9:.2f} GB on disk)")
    print(f"  {wall / 60:.2f} minutes, {cpu:.0f} CPU s, peak {told['rss_gib']:.2f} GiB", end=", ")
    print(f"{told['index_bytes'] / rows:,.0f} bytes of index a row")
    print(f"  {num_bytes / wall / 1e6:.1f} MB/s, {num_bytes / cpu / 1e6:.1f} MB a CPU s")
    num, tokens, each = PAPER
    hours = num * tokens * each / (num_bytes / wall) / 3600
    print(f"  foretold for {num:,} rows of {tokens:,} tokens of {each} bytes: {hours:.2f} hours")
    print(f"  {'phase':<20}{'CPU s':>8}{'rows':>10}{'rows a CPU s':>14}  what was left")
    left = {row["filter"]: row for row in summary["funnel"]}
    for name, (seconds, seen) in told["phases"].items():
        more = f"{left[name]['left']:,} {left[name]['reasons']}" if name in left else ""
        print(f"  {name:<20}{seconds:>8.1f}{seen:>10,}{seen / max(seconds, 1e-3):>14,.0f}  {more}")
    told_by = {"exact": ["duplicate", "near_duplicate"], "near": ["near_duplicate", "duplicate"]}
    for kind in ("exact", "near", "question", "text"):
        ends = {k[2:]: n for k, n in told["found"].items() if k[0] == kind[0]}
        hits = sum(ends.get(reason, 0) for reason in told_by.get(kind, ["contaminated"]))
        missed = ends.get("None", 0) + ends.get("longer", 0)
        recall = hits / max(hits + missed, 1)
        print(f"  planted {kind:<10} {sum(ends.values()):>8,}  recall {recall:.4f}: {ends}")
    plain = {k[2:]: n for k, n in told["found"].items() if k[0] == "p"}
    flagged = {k: plain.get(k, 0) for k in ("duplicate", "near_duplicate", "contaminated")}
    print(f"  of {told['planted']['p']:,} rows that were not planted: {flagged}")


# -- beside the peers ---------------------------------------------------------------------------


def near_dedup(num: int) -> tuple[dict[str, list[measure.Rate]], dict[str, str]]:
    """Rates of near-dedup on rows half of which are near copies, and what each side found.

    datasketch with the same signatures, bands and verification, and the quickest of hashes.
    """
    import xxhash
    from datasketch import MinHash, MinHashLSH

    corpus = Corpus(False, seed=1)
    bodies = [corpus.body() for _ in range(num // 2)]
    copies = [corpus.changed(body, 0.012) for body in bodies]
    texts = [corpus.text(words) for words in (*bodies, *copies)]
    batch = pa.record_batch({"text": pa.array(texts)})
    found: dict[str, list[bool]] = {}
    bands = 128 // duplicates.rows_per_band(0.8, 128), duplicates.rows_per_band(0.8, 128)

    def ours() -> float:
        reasons = [r for said in duplicates.near_duplicates([batch]) for r in said]
        found["limbeck"] = [reason is not None for reason in reasons]
        return len(texts)

    def peer() -> float:
        lsh, stayed, flags = MinHashLSH(num_perm=128, params=bands), [], []
        for number, text in enumerate(texts):
            words = text.lower().split()
            sketch = MinHash(num_perm=128, hashfunc=xxhash.xxh32_intdigest)
            sketch.update_batch(
                [" ".join(words[i : i + 5]).encode() for i in range(len(words) - 4)]
            )
            flags.append(any(stayed[k].jaccard(sketch) >= 0.8 for k in lsh.query(sketch)))
            stayed.append(sketch)
            if not flags[-1]:
                lsh.insert(number, sketch)
        found["datasketch"] = flags
        return len(texts)

    rates = measure.interleaved({"limbeck": ours, "datasketch": peer}, 5)
    middle = len(bodies)
    told = {
        name: f"recall {np.mean(flags[middle:]):.4f}, precision "
        f"{1 - sum(flags[:middle]) / max(sum(flags), 1):.4f}"
        for name, flags in found.items()
    }
    return rates, told


def metadata_filter(traces: Path, scratch: Path) -> dict[str, list[measure.Rate]]:
    """Rates of finding the finished rows of at most 400 tokens, in a table of traces on disk.

    Ours reads two columns of the Parquet parts, page checksums and all, and compares. datasets has
    the rows in its cache already; its `map` is given a function of a row, as it mostly is, and only
    the two columns, and keeps what it makes in memory. Beside it stand what experts can make of it:
    batches of Arrow, which do just what ours does, without Parquet, and `filter` in batches.
    """
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()
    files = [str(path) for path in tables.parts(traces)][:NUM_FILES]
    loaded = datasets.Dataset.from_parquet(files, cache_dir=str(scratch))
    columns = ["finish", "completion_tokens"]
    few = loaded.select_columns(columns)
    settings = {"batched": True, "batch_size": 65_536, "keep_in_memory": True}
    found: dict[str, int] = {}

    def is_wanted(batch: Any) -> Any:
        short = pc.less_equal(batch["completion_tokens"], 400)
        return pc.and_(pc.equal(batch["finish"], "stop"), short)

    def ours() -> float:
        parts = (tables.iter_batches(file, columns, rows=65_536, again=True) for file in files)
        stays = [is_wanted(batch) for part in parts for batch in part]
        found["limbeck"] = sum(pc.sum(stay).as_py() for stay in stays)
        return float(sum(map(len, stays)))

    def mapped(rows: Any, name: str) -> float:
        made = rows.with_format("arrow").map(
            lambda table: table.append_column("stays", is_wanted(table)), **settings
        )
        found[name] = pc.sum(made.data["stays"]).as_py()
        return len(made)

    def filtered() -> float:
        def stays(*given: Any) -> list[bool]:
            return [finish == "stop" and n <= 400 for finish, n in zip(*given, strict=True)]

        found["filter"] = len(few.filter(stays, input_columns=columns, **settings))
        return len(few)

    def by_row() -> float:
        def stays(row: Any) -> Any:
            return {"stays": row["finish"] == "stop" and row["completion_tokens"] <= 400}

        made = few.map(stays, remove_columns=columns, keep_in_memory=True)
        found["map"] = pc.sum(made.data["stays"]).as_py()
        return len(made)

    sides: dict[str, Callable[[], float]] = {"limbeck": ours}
    sides |= {"datasets.map": by_row, "datasets.filter": filtered}
    sides["map of Arrow"] = lambda: mapped(few, "map of Arrow")
    sides["map of Arrow, whole rows"] = lambda: mapped(loaded, "map of Arrow, whole rows")
    rates = measure.interleaved(sides, 5)
    assert len(set(found.values())) == 1, found
    return rates


# -- all of it ----------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=800_000)
    parser.add_argument("--full-length", action="store_true", help="traces as long as they are")
    parser.add_argument("--extended", action="store_true", help="half of the samples came later")
    parser.add_argument("--quick", action="store_true", help="20,000 rows, for CI")
    parser.add_argument("--to", type=Path, help="also writes the last line to this file")
    chosen = parser.parse_args()
    measure.one_thread()
    for name in measure.ENVIRONMENT:  # of this process; the stage runs as `limbeck run` runs it
        if name.startswith("MALLOC"):
            del os.environ[name]
    rows = 20_000 if chosen.quick else chosen.rows
    folder = Path(tempfile.mkdtemp(prefix="limbeck-bench-"))
    try:
        begun = time.monotonic()
        context = multiprocessing.get_context("spawn")
        maker = context.Process(
            target=make, args=(folder, rows, chosen.full_length, chosen.extended)
        )
        maker.start()
        peak = peak_rss(maker) / 2**30
        print(f"the corpus took {time.monotonic() - begun:.0f} s and {peak:.2f} GiB to make")
        sizes = (
            pc.sum(pc.binary_length(b["text"])).as_py()
            for b in tables.iter_batches(folder / "traces", ["text"], again=True)
        )
        disk = sum(path.stat().st_size for path in tables.parts(folder / "traces"))
        num_bytes = sum(sizes)
        told = whole_stage(folder)
        report(told, rows, num_bytes, disk)
        dedup, found = near_dedup(1000 if chosen.quick else 4000)
        print("  ".join(f"{name}: {said}" for name, said in found.items()))
        metadata = metadata_filter(folder / "traces", folder / "cache")
    finally:
        shutil.rmtree(folder)
    cases = []
    for name, rates, peer in (
        ("near_dedup", dedup, "datasketch"),
        ("metadata_filter", metadata, "datasets.map"),
    ):
        value, low, high = measure.ratio(rates["limbeck"], rates[peer])
        line = measure.case(name, value, f"x {peer}", TARGETS[name], low=low, high=high)
        beside = {side: measure.ratio(rates["limbeck"], rates[side])[0] for side in rates}
        cases.append({**line, "beside": {k: round(v, 2) for k, v in beside.items()}})
    for name, value, unit in (
        ("minutes", told["wall_s"] / 60, "minutes"),
        ("rss_gib", told["rss_gib"], "GiB"),
    ):
        line = measure.case(name, value, unit, TARGETS[name])
        cases.append({**line, "met": value <= TARGETS[name]})
    measure.finish("curate", cases, PACKAGES, chosen.to, rows=rows, cpu_s=told["cpu_s"])


if __name__ == "__main__":
    main()
