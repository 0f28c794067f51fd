"""curate: window by window it decides as a plain loop over everything would; the funnel adds up."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace

import pyarrow as pa
import pytest

from limbeck import card, progress, tables, windows
from limbeck.chat import split_think
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.stages import curate
from limbeck.types import Message, Problem, Trace, Verdict


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(progress, "quiet", True)


def short(trace: Trace, verdict: Verdict, *, most: int = 60) -> str | None:
    return "long" if len(trace.text) > most else None


def second_half(traces, verdicts) -> list[str | None]:
    return [None if 2 * i < len(traces) else "second" for i in range(len(traces))]


def new(batches: Iterable[pa.RecordBatch]) -> Iterator[list[str | None]]:
    seen: set[str] = set()
    for batch in batches:
        texts = batch["text"].to_pylist()
        yield ["seen" if text in seen or seen.add(text) else None for text in texts]


def greedy_reader(batches: Iterable[pa.RecordBatch]) -> Iterator[list[str | None]]:
    """Reads everything before it answers."""
    for batch in list(batches):
        asked = zip(batch["question"].to_pylist(), batch["domain"].to_pylist(), strict=True)
        yield ["even" if question.startswith(domain) else None for question, domain in asked]


def silent(batches: Iterable[pa.RecordBatch]) -> Iterator[list[str | None]]:
    yield from []


def hasty(batches: Iterable[pa.RecordBatch]) -> Iterator[list[str | None]]:
    """Answers before it has read."""
    yield [None]
    for batch in batches:
        yield [None] * batch.num_rows


def forgetful(batches: Iterable[pa.RecordBatch]) -> None:
    """Returns where it should yield."""


def wordless(trace: Trace, verdict: Verdict) -> str | None:
    return ""


def doubtful(trace: Trace, verdict: Verdict) -> bool:
    return False


def one_short(traces, verdicts) -> list[str | None]:
    return [None] * (len(traces) - 1)


def in_one_word(traces, verdicts) -> str:
    return "x" * len(traces)


def of_rows(rows) -> None:
    """Its first parameter tells no kind."""


HERE = "tests.stages.test_curate"
KEEP = ["correct", f"{HERE}:short", f"{HERE}:second_half", f"{HERE}:new", f"{HERE}:greedy_reader"]


def sampled(num_problems=40, num_samples=6, seed=0):
    """Problems, and traces with their verdicts in the order of problems and samples."""
    rng = random.Random(seed)
    problems = [
        Problem(
            f"p{n}",
            (Message("system", "be brief"), Message("user", f"{'ab'[n % 2]}: how much is {n}?")),
            "4",
            {"name": "number"},
            domain=rng.choice("abc"),
            meta={"source": f"set {n % 3}", "licence": "MIT"} if n % 5 else {},
        )
        for n in range(num_problems)
    ]
    traces, verdicts = [], []
    for problem in problems:
        for index in range(rng.randrange(num_samples + 1)):
            name = f"{problem.id}-{index}"
            text = f"<think>{'so ' * rng.randrange(20)}</think>\n\n{rng.randrange(30)}"
            traces.append(Trace(name, problem.id, index, text, "stop", "teacher", 1, 2))
            reason = rng.choice(["correct", "correct", "wrong", "timeout"])
            correct = {"correct": True, "wrong": False, "timeout": None}[reason]
            verdicts.append(Verdict(name, correct, "4", reason))
    return problems, traces, verdicts


def write(folder, problems, traces, verdicts, rows_per_part=17):
    """The three tables, in these orders; their paths by name."""
    paths = {}
    for name, rows in (("problems", problems), ("traces", traces), ("verdicts", verdicts)):
        for start in range(0, len(rows), rows_per_part):
            part = tables.to_table(name, rows[start : start + rows_per_part])
            tables.write_part(folder / name, part)
        paths[name] = str(folder / name)
    return paths


def run(folder, paths, keep=KEEP, **more):
    config = curate.Config(**paths, keep=keep, **more)
    summary = curate.run(config, StageFolder(folder / "out", "curate", "key"))
    decisions = tables.read_table(folder / "out" / "decisions").to_pylist()
    return summary, decisions, tables.read_table(folder / "out" / "dataset").to_pylist()


def plainly(problems, traces, verdicts, keep=KEEP):
    """The reason of each trace, by a loop over lists that holds everything."""
    config = curate.Config(problems="", traces="", verdicts="", keep=keep)
    dropped = {trace.id: None for trace in traces}
    by_id = {problem.id: problem for problem in problems}
    said_of = {verdict.trace_id: verdict for verdict in verdicts}
    for rule in config.keep:
        left = [trace for trace in traces if dropped[trace.id] is None]
        if rule.name.endswith((":new", ":greedy_reader")):
            rows = [
                {**asdict(t), "question": by_id[t.problem_id].question,
                 "domain": by_id[t.problem_id].domain} for t in left
            ]  # fmt: skip
            (reasons,) = rule([pa.RecordBatch.from_pylist(rows)]) if rows else [[]]
        elif rule.name.endswith(":second_half"):
            groups = [[t for t in left if t.problem_id == problem.id] for problem in problems]
            reasons = [reason for group in groups for reason in rule(group, [])]
        else:
            reasons = [rule(trace, said_of[trace.id]) for trace in left]
        dropped |= dict(zip((trace.id for trace in left), reasons, strict=True))
    return dropped


def orders(traces, verdicts):
    """The same rows as they may lie on disk."""
    rng = random.Random(1)
    late = [t for t in traces if t.index < 3] + [t for t in traces if t.index >= 3]
    near = sorted(traces, key=lambda t: (int(t.problem_id[1:]) // 4, rng.random()))
    anyhow = rng.sample(traces, len(traces))
    strangers = [Verdict("of nobody", True, "4", "correct"), *rng.sample(verdicts, len(verdicts))]
    return {
        "as made": (traces, verdicts),
        "extended": (late, sorted(verdicts, key=lambda v: [t.id for t in late].index(v.trace_id))),
        "answers in any order": (near, verdicts),
        "anyhow": (anyhow, strangers),
    }


@pytest.mark.parametrize("window", [1, 80_000, 1 << 30])
@pytest.mark.parametrize("order", ["as made", "extended", "answers in any order", "anyhow"])
def test_windows_change_nothing(tmp_path, monkeypatch, window, order):
    monkeypatch.setattr(windows, "WINDOW", window)
    problems, traces, verdicts = sampled()
    paths = write(tmp_path, problems, *orders(traces, verdicts)[order])
    summary, decisions, rows = run(tmp_path, paths)
    expected = plainly(problems, traces, verdicts)
    assert {row["trace_id"]: row["dropped"] for row in decisions} == expected
    assert [row["trace_id"] for row in decisions] == [trace.id for trace in traces]
    assert [row["id"] for row in rows] == [name for name, reason in expected.items() if not reason]
    assert summary["dropped"] == Counter(filter(None, expected.values()))
    assert len(summary["dropped"]) >= 5
    num_parts = len(tables.parts(tmp_path / "out" / "decisions"))
    assert num_parts > 10 if window == 1 else num_parts == (1 if window == 1 << 30 else 4)
    assert not list((tmp_path / "out").glob(".*"))


def test_the_funnel_adds_up(tmp_path):
    problems, traces, verdicts = sampled()
    summary, decisions, rows = run(tmp_path, write(tmp_path, problems, traces, verdicts))
    assert summary["sampled"] == len(traces) == summary["kept"] + sum(summary["dropped"].values())
    left = summary["sampled"]
    for rule, step in zip(KEEP, summary["funnel"], strict=True):
        assert step["filter"] == rule
        left -= sum(step["reasons"].values())
        assert step["left"] == left
    assert left == summary["kept"] == len(rows)
    for domain, ends in summary["by_domain"].items():
        asked = {problem.id for problem in problems if problem.domain == domain}
        mine = [row["dropped"] for row in decisions if row["problem_id"] in asked]
        assert ends["sampled"] == len(mine) == ends["kept"] + sum(ends["dropped"].values())
        assert ends["kept"] == mine.count(None)
    of_problem = Counter(row["problem_id"] for row in decisions)
    assert of_problem == Counter(trace.problem_id for trace in traces)
    json.dumps(summary)


def test_rows_are_conversations(tmp_path):
    problems, traces, verdicts = sampled()
    paths = write(tmp_path, problems, traces, verdicts)
    _, _, whole = run(tmp_path, paths, ["correct"])
    (tmp_path / "out").rename(tmp_path / "before")
    _, _, answers = run(tmp_path, paths, ["correct"], thinking="drop")
    texts = {trace.id: trace.text for trace in traces}
    for row, bare in zip(whole, answers, strict=True):
        assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
        assert row["messages"][-1]["content"] == texts[row["id"]]
        assert bare["messages"][-1]["content"] == split_think(texts[row["id"]]).answer.strip()
        assert row["weight"] == 1 and row["teacher"] == "teacher"
    sources = {row["source"] for row in whole}
    assert sources == {"set 0", "set 1", "set 2", ""}
    folder = tmp_path / "out" / "dataset"
    assert card.read_licences(folder) == dict.fromkeys(sources - {""}, "MIT")
    assert str(tmp_path) not in (folder / "README.md").read_text()


def test_weights_by_difficulty(tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "WINDOW", 50_000)
    problems, traces, verdicts = sampled()
    paths = write(tmp_path, problems, traces, verdicts)
    _, _, rows = run(tmp_path, paths, ["correct"], weights="by_difficulty")
    expected = {}
    for problem in problems:
        mine = [v for v in verdicts if v.trace_id.startswith(f"{problem.id}-")]
        judged = [v.correct for v in mine if v.correct is not None]
        if judged:
            rate = sum(judged) / len(judged)
            expected[problem.id] = max(1 - rate, 0.5 / len(judged))
    weights = [expected[row["problem_id"]] for row in rows]
    mean = sum(weights) / len(weights)
    assert [row["weight"] for row in rows] == pytest.approx([w / mean for w in weights], rel=1e-6)
    assert len(set(weights)) > 5
    assert not list((tmp_path / "out").glob(".*"))


def test_mistakes(tmp_path):
    problems, traces, verdicts = sampled(6)
    cases = [
        ((problems, traces, verdicts[1:]), "curate.verdicts: has nothing on trace p0-0"),
        ((problems[1:], traces, verdicts), "curate.problems: has nothing on trace p0-0"),
        ((problems, [*traces, traces[3]], verdicts), "curate.traces: has two traces "),
    ]
    for number, (rows, what) in enumerate(cases):
        paths = write(tmp_path / str(number), *rows)
        with pytest.raises(UserError, match=what):
            run(tmp_path / str(number), paths)
    paths = write(tmp_path / "all", problems, traces, verdicts)
    with pytest.raises(UserError, match=r"dropped every trace .*\d+ long"):
        run(tmp_path / "all", paths, [{"name": f"{HERE}:short", "most": 1}])
    assert not list((tmp_path / "all" / "out").glob(".*"))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("silent", "left a batch unanswered"),
        ("forgetful", "left a batch unanswered"),
        ("hasty", "answers before it was asked"),
        ("wordless", "gives '' as a word"),
        ("doubtful", "gives False as a word"),
        ("one_short", r"gives \d words for \d rows"),
        ("in_one_word", "gives 'x+', which is no list"),
    ],
)
def test_filters_that_answer_ill_are_named(tmp_path, name, what):
    paths = write(tmp_path, *sampled(6))
    with pytest.raises(UserError, match=f"filter {HERE}:{name}: {what}"):
        run(tmp_path, paths, ["correct", f"{HERE}:{name}"])


def test_a_filter_whose_kind_nobody_knows():
    with pytest.raises(ValueError, match="looks at 'rows', which is no kind"):
        curate.Config(problems="", traces="", verdicts="", keep=[f"{HERE}:of_rows"])


def test_tables_of_strangers(tmp_path):
    problems, traces, verdicts = sampled(6)
    first = problems[0]
    cases = [
        ("traces", (problems, [replace(traces[0], text=None), *traces[1:]], verdicts),
         "row p0-0 has no text"),
        ("problems", ([replace(first, messages=first.messages[:1]), *problems[1:]], traces,
                      verdicts), "problem p0 cannot be read .nothing is asked"),
        ("problems", ([replace(first, meta=[1]), *problems[1:]], traces, verdicts),
         "problem p0 cannot be read .its meta is no object"),
        ("verdicts", (problems, traces, [*verdicts, replace(verdicts[0], correct=None)]),
         "has two verdicts on trace p0-0"),
    ]  # fmt: skip
    for number, (table, rows, what) in enumerate(cases):
        paths = write(tmp_path / str(number), *rows)
        with pytest.raises(UserError, match=rf"{table}: {what}"):
            run(tmp_path / str(number), paths, ["correct", f"{HERE}:new"])
    plain = [replace(problem, domain=None, meta={"source": None}) for problem in problems]
    paths = write(tmp_path / "plain", plain, traces, verdicts)
    summary, _, rows = run(tmp_path / "plain", paths, ["correct"])
    assert [*summary["by_domain"]] == [""]
    assert {row["source"] for row in rows} == {""}


def test_a_source_of_two_licences_has_both(tmp_path):
    problems, traces, verdicts = sampled()
    told = [
        replace(problem, meta={"source": "set", "licence": ("MIT", "CC BY 4.0")[number % 2]})
        for number, problem in enumerate(problems)
    ]
    run(tmp_path, write(tmp_path, told, traces, verdicts), ["correct"])
    said = card.read_licences(tmp_path / "out" / "dataset")
    assert {*said["set"].split(", ")} == {"MIT", "CC BY 4.0"}


def test_windows_hold_whole_problems_and_bounded_texts(tmp_path):
    problems, traces, verdicts = sampled(200)
    for order, (laid, judged) in orders(traces, verdicts).items():
        paths = write(tmp_path / order, problems, laid, judged)
        plan = windows.plan(*paths.values(), "curate", window=100_000)
        (tmp_path / order / "scratch").mkdir()
        found = list(plan.read(tmp_path / order / "scratch"))
        assert [trace.id for window in found for trace in window.traces] == [t.id for t in traces]
        assert len(found) > 5
        assert max(len(window.traces) for window in found) <= 2 * 100_000 / windows.ROW
        for window in found:
            assert [v.trace_id for v in window.verdicts] == [t.id for t in window.traces]
        moved = sorted(path.name for path in (tmp_path / order / "scratch").iterdir())
        assert (
            moved
            == {
                "as made": [],
                "extended": ["traces.arrow", "verdicts.arrow"],
                "answers in any order": [],
                "anyhow": ["traces.arrow", "verdicts.arrow"],
            }[order]
        )
