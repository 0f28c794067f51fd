"""A fault is put into a real training each time, and found by its name; a healthy one has none."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from limbeck import models, newborn, tables
from limbeck.folder import Machine, StageFolder
from limbeck.problems import make_problem
from limbeck.stages import grpo, sft
from limbeck.student.author import Author
from limbeck.train.diagnosis import diagnose
from limbeck.types import Problem, Trace, Verdict

MACHINE = Machine(device="cpu", threads=1)
SUMS = [(i, j) for i in range(5) for j in range(5)]
CHECK = "Wait, let me check that. "
Train = Callable[..., list[dict[str, Any]]]


def noisy_rows() -> list[str]:
    """Sums that are right about half the time: what a base has learned that may become better."""
    rng, rows = random.Random(0), []
    for number in range(12):
        for i, j in SUMS:
            told = i + j if rng.random() < 0.5 else rng.randrange(9)
            thinking = f"{CHECK if rng.random() < 0.3 else ''}{i} and {j}"
            turns = [
                {"role": "user", "content": f"{i}+{j}="},
                {"role": "assistant", "content": f"<think>{thinking}</think>{told}"},
            ]
            rows.append(json.dumps({"id": f"{i}+{j} {number}", "messages": turns}) + "\n")
    return rows


def problems(**knobs: Any) -> list[Problem]:
    return [
        make_problem(f"{i}+{j}=", str(i + j), **{"verifier": "number", **knobs}) for i, j in SUMS
    ]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `base` that knows its sums half, and tables of problems."""
    folder, rows = tmp_path_factory.mktemp("world"), noisy_rows()
    (folder / "rows.jsonl").write_text("".join(rows))
    tokenizer = newborn.train_tokenizer(iter(["".join(rows[:200])]), 300)
    model = newborn.create_model(
        "llama",
        len(tokenizer),
        0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=768,
    )
    models.save_model(model, tokenizer, folder / "start")
    (folder / "base").mkdir()
    paths = {"model": str(folder / "start"), "data": str(folder / "rows.jsonl")}
    settings = sft.Config(**paths, lr=0.01, num_epochs=14.0, batch_size=25)
    sft.run(settings, StageFolder(folder / "base", "base", machine=MACHINE))
    for name, asked in {
        "problems": problems(),
        "denied": problems(verifier=f"{__name__}:never"),
        "unjudged": problems(verifier={"name": "choice"}),
        "hard": [make_problem(f"{n}*{n}=", str(n * n), verifier="number") for n in range(50, 70)],
        "easy": problems(verifier=f"{__name__}:always"),
    }.items():
        tables.write_part(folder / name, tables.to_table("problems", asked))
    return folder


@pytest.fixture
def train(world: Path, tmp_path: Path) -> Train:
    def run(problems: str = "problems", **told: Any) -> list[dict[str, Any]]:
        usual = {"lr": 5e-4, "num_steps": 6, "questions_per_step": 8, "steps_per_round": 2}
        usual |= {"num_samples": 8, "max_tokens": 48, "micro_batch_tokens": 8192}
        paths = {"model": str(world / "base" / "model"), "problems": str(world / problems)}
        out = StageFolder(tmp_path, "rl", machine=MACHINE)
        grpo.run(grpo.Config.model_validate({**usual, **paths, **told}), out)
        return out.metrics()

    return run


def named(rows: list[dict[str, Any]]) -> list[str]:
    return [finding.what for finding in diagnose(rows)]


def never(problem: Problem, trace: Trace) -> Verdict:
    return Verdict(trace.id, False, "", "wrong")


def always(problem: Problem, trace: Trace) -> Verdict:
    return Verdict(trace.id, True, "", "correct")


def large(problem: Problem, trace: Trace, verdict: Verdict) -> float:
    """What a careless reward model may like: large numbers."""
    answer = trace.text.rpartition(">")[2]
    return int(answer) / 8 if answer.isdecimal() and int(answer) <= 8 else 0.0


def test_a_healthy_training_has_nothing_to_complain_of(train):
    rows = train(num_steps=20)
    assert named(rows) == []
    right = [row["correct"] for row in rows]
    assert sum(right[-4:]) / 4 > sum(right[:4]) / 4 + 0.1


@pytest.mark.parametrize(
    ("told", "what"),
    [
        ({"template": "r1_zero"}, "the answers do not have the asked-for form"),
        ({"problems": "denied"}, "the verifier denies right answers"),
        ({"problems": "unjudged"}, "most answers cannot be judged"),
        ({"temperature": 0.0}, "the samples of a problem do not differ"),
        ({"max_tokens": 6}, "answers are cut off"),
        ({"problems": "hard"}, "the problems are too hard"),
        ({"problems": "easy"}, "the problems are too easy"),
        ({"rewards": ["format"]}, "the reward tells nothing apart"),
        ({"lr": 0.03, "num_steps": 10}, "the learning rate is too high"),
        ({"lr": 1e-6, "num_steps": 16, "questions_per_step": 2}, "the policy hardly moves"),
        (
            {"lr": 2e-3, "num_steps": 20, "rewards": [f"{__name__}:large"]},
            "the reward is gamed",
        ),
    ],
)
def test_a_fault_is_named(train, told, what):
    assert named(train(**told)) == [what]


def test_an_engine_with_other_weights_is_named(train, monkeypatch):
    monkeypatch.setattr(Author, "refresh", lambda author: None)  # it goes on as it began
    assert "engine and trainer disagree" in named(train(lr=2e-3, num_steps=10))


# -- what takes longer to come about than a test may ----------------------------------------------


def told(**curves: Sequence[float]) -> list[dict[str, Any]]:
    """Rows of a training that is well but for these numbers, a round a step."""
    well = {
        "reward": 1.2, "correct": 0.4, "no_signal": 0.2, "all_right": 0.1, "all_wrong": 0.1,
        "identical": 0.0, "denied": 0.0, "truncated": 0.01, "mean_length": 100.0, "direct": 0.02,
        "entropy": 0.3, "clip_share": 0.0, "kl": 0.01, "mismatch_kl": 1e-6, "grad_norm": 0.5,
    }  # fmt: skip
    reasons = {"correct": 0.4, "wrong": 0.59, "truncated": 0.01}
    rows = []
    for step, values in enumerate(zip(*curves.values(), strict=True), 1):
        own = dict(zip(curves, values, strict=True))
        rows.append({"step": step, "round": step, "reasons": reasons, **well, **own})
    return rows


def line(first: float, last: float, num: int = 20) -> list[float]:
    return [first + (last - first) * i / (num - 1) for i in range(num)]


def test_rows_that_are_well():
    assert diagnose(told(reward=line(1.2, 1.6), correct=line(0.3, 0.7))) == []
    assert diagnose([]) == [] and diagnose([{"step": 1, "pass_at_1": 0.5}]) == []


@pytest.mark.parametrize(
    ("curves", "what"),
    [
        (
            {"reward": line(0.3, 1.9), "pass_at_1": [*line(0.4, 0.5, 6), *line(0.5, 0.3, 14)]},
            "the reward is gamed",
        ),
        ({"mean_length": line(15, 7), "direct": line(0.1, 0.7)}, "thinking is given up"),
        (
            {"entropy": line(0.4, 0.0), "no_signal": line(0.1, 1.0), "correct": line(0.3, 0.4)},
            "exploration has ended",
        ),
        ({"mismatch_kl": line(0.03, 0.05)}, "engine and trainer disagree"),
        ({"reasons": [{"timeout": 0.6, "correct": 0.4}] * 4}, "most answers cannot be judged"),
        (
            {"truncated": [0.9] * 4, "direct": [0.95] * 4, "reasons": [{"truncated": 0.9}] * 4},
            "the answers do not have the asked-for form",
        ),
        (  # thinking that is never closed, by a stop
            {"reasons": [{"truncated": 0.8, "wrong": 0.2}] * 4},
            "the answers do not have the asked-for form",
        ),
        (
            {"reward": [*line(1.2, 1.8, 10), *line(1.8, 0.9, 10)], "entropy": line(0.3, 1.8)},
            "the learning rate is too high",
        ),
    ],
)
def test_what_comes_late_is_named(curves, what):
    assert named(told(**curves)) == [what]


def test_a_gamed_reward_is_told_with_its_figures():
    curves = {"reward": line(0.3, 1.9), "pass_at_1": [*line(0.4, 0.5, 6), *line(0.5, 0.3, 14)]}
    rows = told(**curves)
    for row, gamed in zip(rows, line(0.0, 1.5), strict=True):
        row["rewards"] = {"correct": 0.4, "reward_model": gamed}
    (found,) = diagnose(rows)
    assert "validation pass@1 fell from 49% to 33%" in found.evidence
    assert "reward_model climbed most" in found.evidence


def test_of_a_step_that_was_made_again_the_last_word_counts():
    healthy = told(mismatch_kl=line(0.0, 0.0))
    before = [{**row, "mismatch_kl": 1.0} for row in healthy[:15]]
    assert diagnose(before) and diagnose([*before, *healthy]) == []


def test_noise_of_few_answers_is_no_fault():
    """Each round of eight questions goes up and down by more than the whole training does."""
    rewards = [
        0.42, 0.42, 0.3, 0.42, 0.52, 0.22, 0.36, 0.16, 0.55, 0.47, 0.34, 0.42, 0.41, 0.44, 0.47,
        0.45, 0.48, 0.41, 0.45, 0.56, 0.27, 0.53, 0.58, 0.44, 0.48, 0.36, 0.42, 0.27, 0.44, 0.41,
        0.7, 0.75, 0.12, 0.42, 0.45, 0.47, 0.39, 0.39, 0.06, 0.39, 0.28, 0.33, 0.03, 0.36, 0.22,
        0.42, 0.34, 0.33, 0.27, 0.45, 0.36, 0.45, 0.27, 0.36, 0.47, 0.12, 0.23, 0.39, 0.31, 0.3,
    ]  # fmt: skip
    rows = [
        {"step": step, "reward": reward, "grad_norm": 2.3 if step == 40 else 0.2, "entropy": 0.3}
        for step, reward in enumerate(rewards, 1)
    ]
    assert diagnose(rows) == []
    collapsed = [
        {**row, "reward": row["reward"] - (0.3 if row["step"] > 45 else 0)} for row in rows
    ]
    assert [finding.what for finding in diagnose(collapsed)] == ["the learning rate is too high"]
