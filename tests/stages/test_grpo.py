"""grpo, by a tiny student: it learns what is rewarded, and each part does what plain torch does."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from limbeck import processes, store, tables
from limbeck.errors import UserError
from limbeck.folder import Machine, StageFolder
from limbeck.problems import make_problem
from limbeck.types import Problem, Trace, Verdict

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402

from limbeck import chat, models, newborn  # noqa: E402
from limbeck.stages import curate, grpo  # noqa: E402
from limbeck.train.advantages import z_score  # noqa: E402
from tests.numerics.test_sharding import in_two  # noqa: E402

MACHINE = Machine(device="cpu", threads=1)
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
ROUND = {"num_samples": 4, "questions_per_step": 3, "steps_per_round": 2, "max_tokens": 10}


def says_a(problem: Problem, trace: Trace, verdict: Verdict) -> float:
    """A reward that a newborn soon learns to earn."""
    return float("a" in trace.text)


def only_of_odd(problem: Problem, trace: Trace, verdict: Verdict) -> float:
    """Tells the answers to every other question apart; no two answers are as good as each other."""
    return trace.index % 4 + 0.1 if int(problem.answer) % 2 else 1.0


def always_another(problem: Problem, trace: Trace, verdict: Verdict) -> float:
    return float(trace.index % 4)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a newborn `model` and ten `problems`."""
    folder = tmp_path_factory.mktemp("world")
    texts = [f"{a} and {b} make {a + b}." for a in range(12) for b in range(12)]
    tokenizer = newborn.train_tokenizer(iter(texts), 280)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = newborn.create_model("llama", len(tokenizer), 1, **ends, **SIZES)
    models.save_model(model, tokenizer, folder / "model")
    problems = [make_problem(f"{i} + 0?", str(i), verifier="number") for i in range(10)]
    tables.write_part(folder / "problems", tables.to_table("problems", problems))
    return folder


def config(world: Path, **told: Any) -> grpo.Config:
    paths = {"model": str(world / "model"), "problems": str(world / "problems")}
    usual = {**ROUND, "rewards": [f"{__name__}:says_a"], "lr": 0.01, "num_steps": 4}
    return grpo.Config.model_validate({**paths, **usual, **told})


def learn(settings: grpo.Config, out: Path) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    return grpo.run(settings, StageFolder(out, "grpo", "key", MACHINE))


def steps(out: Path) -> list[dict[str, Any]]:
    return store.read_jsonl(out / "metrics.jsonl")


def rows(out: Path, table: str) -> list[dict[str, Any]]:
    return tables.read_table(out / table).to_pylist()


# -- what a recipe says ---------------------------------------------------------------------------


def test_the_defaults_are_those_of_r1() -> None:
    preset = grpo.Config(model="m", problems="p", num_steps=1)
    assert (preset.lr, preset.warmup_ratio, preset.final_lr_ratio) == (3e-6, 0, 1)
    assert (preset.kl, preset.kl_estimate, preset.reference_steps) == (0.001, "k3", 400)
    assert preset.objective.name == "grpo" and preset.objective.knobs["clip"] == 10
    assert (preset.compare.name, preset.averages) == ("z_score", "output")
    assert (preset.num_samples, preset.questions_per_step, preset.steps_per_round) == (16, 32, 16)
    assert preset.num_samples * preset.questions_per_step * preset.steps_per_round == 8192
    assert (preset.temperature, preset.top_p, preset.max_tokens) == (1, 1, 32_768)
    assert [each.reward.name for each in preset.rewards] == ["correct", "format"]
    assert {each.weight for each in preset.rewards} == {1}


@pytest.mark.parametrize(
    ("objective", "compares", "averages"),
    [
        ("grpo", "z_score", "output"),
        ("dr_grpo", "mean_only", "length"),
        ("dapo", "z_score", "token"),
        ("gspo", "z_score", "output"),
        ("cispo", "z_score", "token"),
    ],
)
def test_each_objective_learns_as_its_paper_prescribes(
    world: Path, tmp_path: Path, objective: str, compares: str, averages: str
) -> None:
    settings = config(world, objective=objective, kl=0.0 if objective == "dapo" else 0.1)
    assert (settings.compare.name, settings.averages) == (compares, averages)
    said = learn(settings, tmp_path)
    assert said["accounts"] == {"inputs": 48, "ok": 48, "rejected": 0, "failed": 0, "poison": 0}
    found = steps(tmp_path)
    assert [(row["step"], row["round"]) for row in found] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    for row in found:
        assert 0 < row["entropy"] < math.log(300) and row["grad_norm"] > 0
        assert row["ratio_max"] == pytest.approx(1, abs=1e-3) or row["step"] % 2 == 0
        assert ("kl" in row) == (objective != "dapo")
    assert found[1]["ratio_max"] > 1.01  # the first step has moved the policy


def test_what_cannot_work_is_refused(world: Path) -> None:
    for told, mistake in [
        ({"num_samples": 1}, "num_samples 1 leaves an answer nothing to compare with; take 2"),
        ({"kl": 0.0, "reference_steps": 9}, "kl 0 does without a reference; drop reference_steps"),
        ({"correction": 2.0, "temperature": 0.0}, "drop it at temperature 0"),
        ({"validation": {"every_steps": 1, "data": "d"}}, "drop validation.data"),
        ({"template": "r1_zero", "engine": "worked"}, "let a stage `adopt` give it to the model"),
        ({"num_tokens": 9}, "needs one of num_steps, num_tokens and num_flops; give one of them"),
        ({"objective": "gropo"}, "did you mean 'grpo'?"),
        ({"rewards": []}, "at least 1 item"),
    ]:
        with pytest.raises(ValidationError) as refused:
            config(world, **told)
        assert mistake in str(refused.value)


def test_an_engine_that_cannot_learn_is_refused(world: Path, tmp_path: Path) -> None:
    engine = {"name": "worked"}
    with pytest.raises(UserError, match="cannot take the weights of a student in training"):
        learn(config(world, engine=engine), tmp_path)


# -- what is learned ------------------------------------------------------------------------------


def test_a_reward_that_can_be_earned_rises(world: Path, tmp_path: Path) -> None:
    settings = config(world, num_samples=8, questions_per_step=4, num_steps=16)
    learn(settings, tmp_path)
    rewards = [row["reward"] for row in steps(tmp_path)]
    assert rewards[0] < 0.5 and np.mean(rewards[-4:]) > 0.85


def test_a_step_is_that_of_plain_torch(world: Path, tmp_path: Path) -> None:
    learn(config(world, steps_per_round=1, num_steps=1, kl=0.0), tmp_path)
    model, tokenizer = (
        load(world / "model") for load in (models.load_model, models.load_tokenizer)
    )
    problems = {problem.id: problem for problem in tables.read_problems(world / "problems")}
    traces = rows(tmp_path, "rollouts")
    rewards = np.array([row["reward"] for row in rows(tmp_path, "rewards")])
    advantages = z_score(rewards.reshape(-1, 4)).reshape(-1)
    loss = torch.tensor(0.0)
    for trace, advantage in zip(traces, advantages, strict=True):
        prompt = chat.prompt_ids(tokenizer, problems[trace["problem_id"]].messages)
        written = torch.tensor(trace["token_ids"])
        logits = model(torch.cat([torch.tensor(prompt), written])[None]).logits[0]
        logp = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, written[:, None])[:, 0]
        assert logp.tolist() == pytest.approx(trace["logprobs"], abs=1e-4)
        ratio = (logp - torch.tensor(trace["logprobs"])).exp()
        loss = loss - (ratio * advantage).mean() / len(traces)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    trained = models.load_model(tmp_path / "model")
    plain, ours = (
        torch.cat([parameter.detach().reshape(-1) for parameter in one.parameters()])
        for one in (model, trained)
    )
    # Adam's first step is the gradient's sign: it may differ where a gradient is nearly nothing
    assert float((plain - ours).abs().gt(1e-4).float().mean()) < 0.01
    assert steps(tmp_path)[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)


def test_a_round_is_split_at_random_and_each_answer_learned_once(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Any]] = []
    share = grpo._share
    monkeypatch.setattr(grpo, "_share", lambda *told: seen.append(share(*told)) or seen[-1])
    learn(config(world, steps_per_round=3, num_steps=3, objective="dr_grpo"), tmp_path)
    names = [[output.name for group in groups for output in group.outputs] for groups in seen]
    assert [len(step) for step in names] == [12, 12, 12]
    written = [row["id"] for row in rows(tmp_path, "rollouts")]
    learned = [name for step in names for name in step]
    assert sorted(learned) == sorted(written) and learned != written  # at random
    for groups in seen:
        prompts = [tuple(group.prompt) for group in groups]
        assert len(set(prompts)) == len(prompts) < 9  # a question is read once
        outputs = [output for group in groups for output in group.outputs]
        assert all(output.weight == 1 / 10 for output in outputs)  # max_tokens
        assert grpo._total_weight(config(world, objective="dr_grpo"), groups) == 12


def test_questions_whose_answers_earn_the_same_are_drawn_anew(world: Path, tmp_path: Path) -> None:
    rewards = [f"{__name__}:only_of_odd"]
    said = learn(config(world, rewards=rewards, refill=20, num_steps=4), tmp_path)
    kept, learned = rows(tmp_path, "rollouts"), rows(tmp_path, "rewards")
    by_problem = {p.id: int(p.answer) for p in tables.read_problems(world / "problems")}
    for row, reward in zip(kept, learned, strict=True):
        assert row["id"] == reward["trace_id"]
        assert reward["learned"] == (by_problem[row["problem_id"]] % 2 == 1)
        assert json.loads(reward["parts"]) == {"only_of_odd": reward["reward"]}
    assert said["accounts"]["ok"] == 2 * 6 * 4 == sum(row["learned"] for row in learned)
    assert said["accounts"]["rejected"] == len(kept) - 48 > 0
    assert len(rows(tmp_path, "verdicts")) == len(kept)
    for row in steps(tmp_path):
        assert row["refilled"] > 0 and 0 < row["no_signal"] < 1
    # Who is asked again gives further samples, numbered on.
    indices: dict[str, list[int]] = {}
    for row in kept:
        indices.setdefault(row["problem_id"], []).append(row["index"])
    assert all(found == list(range(len(found))) for found in indices.values())
    assert max(map(len, indices.values())) > 4
    assert len({row["id"] for row in kept}) == len(kept)


def test_without_any_signal_it_still_ends(world: Path, tmp_path: Path) -> None:
    settings = config(world, rewards=["correct"], temperature=0.0, refill=1)
    learn(settings, tmp_path)
    found = steps(tmp_path)
    assert all(row["no_signal"] == 1 and row["refilled"] == 6 for row in found)
    assert found[0]["loss"] == 0 and found[0]["kl"] == 0


def test_the_reference_follows(world: Path, tmp_path: Path) -> None:
    learn(config(world, kl=0.1, reference_steps=3, num_steps=7, checkpoint_steps=2), tmp_path)
    kl = [row["kl"] for row in steps(tmp_path)]
    assert [value == 0 for value in kl] == [step % 3 == 0 for step in range(7)]
    assert min(value for value in kl if value) > 1e-6
    # Those that the two checkpoints left may need, 6 and 7; no others.
    kept = sorted(path.name[:11] for path in (tmp_path / "reference").iterdir())
    assert kept == ["step-000003", "step-000006"]
    assert set(grpo.SCRATCH) == {"checkpoints", "reference", "own"}


def test_adapters_learn_beside_a_whole_reference(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    learn(config(world, lora={"rank": 4}, kl=0.1, reference_steps=2), tmp_path)
    kl = [row["kl"] for row in steps(tmp_path)]
    assert kl[0] == 0 and kl[1] > 1e-7 and kl[2] < 1e-3 * kl[1]  # merged, it rounds otherwise
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


# -- log-probabilities ----------------------------------------------------------------------------


def test_under_a_nucleus_the_trainers_own_log_probabilities_stand(
    world: Path, tmp_path: Path
) -> None:
    settings = config(world, top_p=0.9, temperature=0.7, correction=2.0, num_steps=2, kl=0.0)
    learn(settings, tmp_path)
    engines = {row["id"]: row["logprobs"] for row in rows(tmp_path, "rollouts")}
    own = rows(tmp_path, "own")
    assert len(own) == len(engines)
    for row in own:
        assert row["drawn"] == pytest.approx(engines[row["trace_id"]], abs=1e-3)
        assert all(whole < drawn for whole, drawn in zip(row["whole"], row["drawn"], strict=True))
    for row in steps(tmp_path):
        assert row["mismatch_kl"] < 1e-5 and row["mismatch_max"] < 1.01
    assert steps(tmp_path)[0]["ratio_max"] == pytest.approx(1, abs=1e-5)


def test_a_round_that_rotted_is_made_again(world: Path, tmp_path: Path) -> None:
    settings = config(world, correction=2.0, checkpoint_steps=2)
    learn(settings, tmp_path / "whole")
    learn(settings.model_copy(update={"num_steps": 2}), tmp_path / "rotten")
    later = learn(settings.model_copy(update={"num_steps": 3}), tmp_path / "rotten")
    assert later["num_steps"] == 3
    for path in (tmp_path / "rotten" / "checkpoints").glob("step-000003"):
        path.rename(path.with_name(".lost"))
    part = next((tmp_path / "rotten" / "rollouts").glob("part-00001-*"))
    part.write_bytes(part.read_bytes()[:-9] + b"something")
    learn(settings, tmp_path / "rotten")
    assert "made again" in (tmp_path / "rotten" / "log.txt").read_text()
    found, wanted = (tmp_path / name for name in ("rotten", "whole"))
    assert {row["step"]: row for row in steps(found)} == {row["step"]: row for row in steps(wanted)}
    for table in ("rollouts", "verdicts", "rewards", "own", "model"):
        assert store.hash_tree(found / table) == store.hash_tree(wanted / table)


def test_a_round_behind_a_lost_one_is_refused(world: Path, tmp_path: Path) -> None:
    learn(config(world, num_steps=2), tmp_path)
    next((tmp_path / "rollouts").glob("part-00000-*")).unlink()
    for _ in range(2):
        with pytest.raises(UserError, match=r"rollouts: lacks the part of round 1; .*--redo grpo"):
            learn(config(world), tmp_path)
    assert not tables.parts(tmp_path / "rollouts")
    assert len(tables.parts(tmp_path / "verdicts")) == 1


@pytest.mark.parametrize("table", ["rollouts", "verdicts", "rewards"])
def test_what_rotted_in_the_middle_of_a_round_is_told(
    world: Path, tmp_path: Path, table: str
) -> None:
    learn(config(world, num_steps=1), tmp_path)
    part = next((tmp_path / table).glob("part-00000-*"))
    part.write_bytes(part.read_bytes()[:-9] + b"something")
    with pytest.raises(UserError, match=r"changed on disk since it was written; .*--redo grpo"):
        learn(config(world, num_steps=2), tmp_path)


@pytest.mark.parametrize("num_bytes", [400, 3000])
def test_a_reference_that_rotted_is_told(world: Path, tmp_path: Path, num_bytes: int) -> None:
    settings = config(world, kl=0.1, reference_steps=3, num_steps=1)
    learn(settings, tmp_path)
    copy = next((tmp_path / "reference").iterdir())
    whole = copy.read_bytes()
    copy.write_bytes(whole[:-num_bytes] + (bytes(num_bytes) if num_bytes == 400 else b""))
    with pytest.raises(UserError, match=r"changed on disk since it was written; .*--redo grpo"):
        learn(settings.model_copy(update={"num_steps": 2}), tmp_path)
    copy.unlink()
    with pytest.raises(UserError, match=r"reference: lacks the copy of step 0; .*--redo grpo"):
        learn(settings.model_copy(update={"num_steps": 2}), tmp_path)


# -- beside the loop ------------------------------------------------------------------------------


def test_rollouts_feed_curation(world: Path, tmp_path: Path) -> None:
    learn(config(world, num_steps=6), tmp_path / "grpo")  # asks some questions twice
    traces = tmp_path / "grpo" / "rollouts"
    settings = curate.Config.model_validate(
        {
            "problems": str(world / "problems"),
            "traces": str(traces),
            "verdicts": str(tmp_path / "grpo" / "verdicts"),
            "keep": [],
        }
    )
    (tmp_path / "curate").mkdir()
    out = StageFolder(tmp_path / "curate", "curate", "key", MACHINE)
    said = curate.run(settings, out)
    assert said["accounts"]["inputs"] == len(tables.read_traces(traces)) == 72
    assert said["accounts"]["ok"] == 72


def test_a_budget_of_flops_counts_the_rollouts(world: Path, tmp_path: Path) -> None:
    said = learn(config(world, num_steps=None, num_flops=2e8, kl=0.1), tmp_path)
    spent = Counter[str]()
    for row in store.read_jsonl(tmp_path / "ledger.jsonl"):
        spent[row["work"]] += row["flops"]
    assert sum(spent.values()) == pytest.approx(said["flops"]) and spent["rollouts part"] > 0
    tokens = said["loss_tokens"] + said["prompt_tokens"]
    # forward and backward, and forward once more through the reference
    assert spent["train"] == pytest.approx(8 * said["num_parameters"] * tokens)
    assert said["flops"] >= 2e8 > said["flops"] - 2 * spent["train"] / said["num_steps"]


def test_a_budget_that_a_round_goes_beyond_is_told(world: Path, tmp_path: Path) -> None:
    said = learn(config(world, num_steps=None, num_flops=1e6, kl=0.0), tmp_path / "small")
    assert said["over_budget"] == pytest.approx(said["flops"] / 1e6 - 1) and said["flops"] > 1.02e6
    log = (tmp_path / "small" / "log.txt").read_text()
    assert "more than num_flops" in log and "take smaller rounds" in log
    assert "over_budget" not in learn(config(world, num_steps=1, kl=0.0), tmp_path / "steps")


def test_a_template_is_saved_with_the_model(world: Path, tmp_path: Path) -> None:
    settings = config(world, template="r1_zero", context=1024, num_steps=2)
    learn(settings, tmp_path)
    tokenizer = models.load_tokenizer(tmp_path / "model")
    problem = tables.read_problems(world / "problems")[0]
    prompt = chat.render_prompt(tokenizer, problem.messages)
    assert prompt.startswith("A conversation between User and Assistant.")
    assert prompt.endswith(f"User: {problem.question}. Assistant:")
    kept = {row["problem_id"]: row["prompt_tokens"] for row in rows(tmp_path, "rollouts")}
    assert min(kept.values()) > 100


def test_questions_without_room_are_told(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="of 6 questions 0 have room in the student"):
        learn(config(world, template="r1_zero"), tmp_path)


def test_questions_without_room_are_no_signal(world: Path, tmp_path: Path) -> None:
    told = [(f"{i} + 0?", str(i)) for i in range(6)] + [("9 + 0? " * 40, "9")] * 1
    problems = [make_problem(*pair, verifier="number") for pair in told]
    tables.write_part(tmp_path / "problems", tables.to_table("problems", problems))
    rewards = [f"{__name__}:always_another"]
    settings = config(
        world, problems=str(tmp_path / "problems"), rewards=rewards, num_steps=1, refill=1,
        questions_per_step=7, steps_per_round=1,
    )  # fmt: skip
    learn(settings, tmp_path / "out")
    (step,) = steps(tmp_path / "out")
    assert step["no_signal"] == 0 and step["refilled"] == 1 and step["mean_length"] > 1
    assert step["reward"] == 1.5 and len(rows(tmp_path / "out", "rollouts")) == 8 * 4
    assert "1 questions have no room, left out" in (tmp_path / "out" / "log.txt").read_text()


def test_domains_that_no_problem_has_are_told_before_anything_is_asked(
    world: Path, tmp_path: Path
) -> None:
    rewards = [{"reward": "correct", "domains": ["mthematics"]}]
    with pytest.raises(UserError, match="no problem is of the domains 'mthematics'"):
        learn(config(world, rewards=rewards), tmp_path)
    assert not (tmp_path / "rollouts").exists()


def test_a_problem_that_stands_there_twice_is_counted_once(world: Path, tmp_path: Path) -> None:
    problems = tables.read_problems(world / "problems")[:2]
    twice = tables.to_table("problems", problems + problems[:1])
    tables.write_part(tmp_path / "problems", twice)
    learn(config(world, problems=str(tmp_path / "problems"), num_steps=1), tmp_path / "out")
    assert " 2 problems," in (tmp_path / "out" / "log.txt").read_text()


def flat(logp: Any, tok: Any) -> Any:
    """An objective that does not look at what it is to change."""
    return torch.zeros_like(logp)


def silent(logp: Any, tok: Any) -> None:
    """An objective that forgets to say anything."""


@pytest.mark.parametrize(
    ("name", "what"), [("flat", "has no gradient"), ("silent", "gives None for log-prob")]
)
def test_objectives_that_teach_nothing_are_told(
    world: Path, tmp_path: Path, name: str, what: str
) -> None:
    with pytest.raises(UserError, match=f"objective: {what}"):
        learn(config(world, objective=f"{__name__}:{name}", kl=0.0), tmp_path)


def test_the_best_student_by_its_answers_becomes_the_model(world: Path, tmp_path: Path) -> None:
    looks = {"every_steps": 2, "problems": str(world / "problems"), "max_tokens": 8}
    said = learn(config(world, validation=looks), tmp_path)
    seen = {row["step"]: row["pass_at_1"] for row in steps(tmp_path) if "pass_at_1" in row}
    assert list(seen) == [2, 4] and said["best"]["pass_at_1"] == max(seen.values())


def test_another_engine_writes_with_the_newest_weights(world: Path, tmp_path: Path) -> None:
    engine = {"name": "local", "model": str(world / "model"), "device": "cpu"}
    learn(config(world), tmp_path / "own")
    learn(config(world, engine=engine), tmp_path / "other")
    own, other = (rows(tmp_path / name, "rollouts") for name in ("own", "other"))
    assert [row["token_ids"] for row in own] == [row["token_ids"] for row in other]
    weights = [load_file(tmp_path / n / "model" / "model.safetensors") for n in ("own", "other")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def train_in(world: Path, out: Path) -> None:
    """What each of two processes does."""
    out.mkdir(parents=True, exist_ok=True)
    settings = config(world, kl=0.1, reference_steps=3, num_steps=6, correction=2.0)
    grpo.run(settings, StageFolder(out, "grpo", "key", MACHINE, leads=processes.leads()))


def test_two_processes_learn_what_one_does(world: Path, tmp_path: Path) -> None:
    assert in_two(train_in, world, tmp_path / "two") == [0, 0]
    train_in(world, tmp_path / "one")
    one, two = steps(tmp_path / "one"), steps(tmp_path / "two")
    assert [row["step"] for row in two] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "grad_norm", "kl", "entropy", "reward", "mismatch_kl"):
        ours, theirs = ([row[name] for row in found] for found in (two, one))
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6), name
    texts = [[row["text"] for row in rows(tmp_path / n, "rollouts")] for n in ("one", "two")]
    assert texts[0] == texts[1]


def test_in_bfloat16_both_sides_compute_in_it(world: Path, tmp_path: Path) -> None:
    learn(config(world, dtype="bfloat16"), tmp_path / "a")
    firsts = [row for row in steps(tmp_path / "a") if row["step"] % 2 == 1]  # of each round
    for row in firsts:  # bfloat16 keeps 8 bits: logits are off by parts of a per cent
        assert 0 < row["mismatch_kl"] < 0.01 and row["mismatch_max"] < 1.5
    saved = models.load_model(str(tmp_path / "a" / "model"), "float32", "cpu")
    bits = saved.get_input_embeddings().weight
    assert not torch.equal(bits, bits.bfloat16().float())  # the weights that learned are whole
