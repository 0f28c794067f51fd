"""What a training can be told: adapters, rates, validations; each survives a kill bit by bit."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from limbeck import models, newborn, store, tables
from limbeck.errors import UserError
from limbeck.folder import Machine, StageFolder
from limbeck.problems import make_problem
from limbeck.stages import sft
from limbeck.train import adapters
from limbeck.train.config import LessonsConfig, LoraConfig, ValidationConfig
from limbeck.train.examples import read_lessons
from limbeck.train.validation import remember

MACHINE = Machine(device="cpu", threads=1)
PRELOAD = ["limbeck.stages.sft", "limbeck.train.training", "limbeck.engines.local_engine"]
PRELOAD += ["peft", "limbeck.train.eight_bit"]


def rows(numbers: range) -> str:
    lines = []
    for i in numbers:
        answer = f"<think>{i} twice</think>{2 * i}"
        messages = [
            {"role": "user", "content": f"{i}+{i}="},
            {"role": "assistant", "content": answer},
        ]
        lines.append(json.dumps({"id": f"row{i}", "messages": messages}) + "\n")
    return "".join(lines)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a newborn `model`, `rows.jsonl`, `heldout.jsonl` and `problems`."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "rows.jsonl").write_text(rows(range(16)))
    (folder / "heldout.jsonl").write_text(rows(range(16, 24)))
    tokenizer = newborn.train_tokenizer(iter([rows(range(16))]), 280)
    model = newborn.create_model(
        "llama",
        len(tokenizer),
        0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    models.save_model(model, tokenizer, folder / "model")
    problems = [make_problem(f"{i}+{i}=", str(2 * i), verifier="number") for i in range(20)]
    tables.write_part(folder / "problems", tables.to_table("problems", problems))
    return folder


def config(world: Path, **told: Any) -> sft.Config:
    usual = {"lr": 0.02, "num_epochs": 4, "batch_size": 8, "checkpoint_steps": 3}
    paths = {"model": str(world / "model"), "data": str(world / "rows.jsonl")}
    return sft.Config(**{**usual, **paths, **told})


def train(settings: sft.Config, out: Path, kill_at: str = "") -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    os.environ["LIMBECK_KILL_AT"] = kill_at
    return sft.run(settings, StageFolder(out, "sft", "key", MACHINE))


def killed(settings: sft.Config, out: Path, at: str) -> None:
    """The same in a process of its own, which dies at a failpoint."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=train, args=(settings, out, at))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def curve(out: Path) -> list[dict[str, Any]]:
    """The last word on each step."""
    told = {row["step"]: row for row in store.read_jsonl(out / "metrics.jsonl")}
    return [told[step] for step in sorted(told)]


def plain_loss(model_folder: Path, data: Path) -> float:
    """Mean nats per token, text by text, through transformers alone."""
    model = models.load_model(model_folder)
    examples = read_lessons(str(data), models.load_tokenizer(model_folder), 128).examples
    total, num = 0.0, 0
    for example in examples:
        ids = torch.tensor([example.ids])
        with torch.no_grad():
            logp = model(ids).logits[0, :-1].log_softmax(-1)
        mask = torch.tensor(example.loss_mask[1:], dtype=torch.bool)
        total -= float(logp.gather(1, ids[0, 1:, None])[mask].sum())
        num += int(mask.sum())
    return total / num


def test_the_best_student_that_was_seen_becomes_the_model(world: Path, tmp_path: Path) -> None:
    looks = ValidationConfig(every_steps=2, data=str(world / "heldout.jsonl"), patience=2)
    said = train(config(world, num_epochs=40, validation=looks), tmp_path)
    seen = {row["step"]: row["heldout_loss"] for row in curve(tmp_path) if "heldout_loss" in row}
    assert list(seen) == list(range(2, said["num_steps"] + 1, 2))
    best = min(seen, key=lambda step: seen[step])
    assert said["best"] == {"step": best, "heldout_loss": seen[best]}
    assert best == said["num_steps"] - 4 < 80, "it stopped at the second look without a better one"
    assert said["epochs"] == said["num_steps"] / 2
    measured = plain_loss(tmp_path / "model", world / "heldout.jsonl")
    assert measured == pytest.approx(seen[best], abs=1e-5)
    assert "no better for 2 looks" in (tmp_path / "log.txt").read_text()
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert f"step-{best:06d}" in kept
    assert len(kept) <= 3


def test_pass_at_1_is_that_of_the_saved_model(world: Path, tmp_path: Path) -> None:
    from limbeck.engines import local
    from limbeck.engines.sampling import requests_for
    from limbeck.types import Sampling
    from limbeck.verifiers.judging import judge

    looks = ValidationConfig(
        every_steps=20, problems=str(world / "problems"), temperature=0.0, max_tokens=24
    )
    said = train(config(world, num_epochs=30, validation=looks), tmp_path)
    seen = {row["step"]: row["pass_at_1"] for row in curve(tmp_path) if "pass_at_1" in row}
    assert list(seen) == [20, 40, 60]
    assert said["best"]["pass_at_1"] == max(seen.values()) > 0.3, "it has learned to double"
    problems = tables.read_problems(world / "problems")
    requests = requests_for(problems, 1, 0, StageFolder(tmp_path, "sft", "key", MACHINE))
    engine = local.connect(model=str(tmp_path / "model"), device="cpu")
    traces = {t.problem_id: t for t in engine.generate(requests, Sampling(0.0, max_tokens=24))}
    right = [judge(problem, traces[problem.id]).correct for problem in problems]
    assert sum(r is True for r in right) / len(right) == said["best"]["pass_at_1"]


KINDS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "adapters": {
        "lora": LoraConfig(rank=4, dropout=0.2, base="nf4"),
        "gradient_checkpointing": True,
    },
    "moments of 8 bits": {"optimizer": "adamw_8bit"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_between_two_looks_changes_no_bit(kind: str, world: Path, tmp_path: Path) -> None:
    looks = ValidationConfig(
        every_steps=2,
        data=str(world / "heldout.jsonl"),
        problems=str(world / "problems"),
        patience=3,
        max_tokens=12,
    )
    settings = config(world, validation=looks, **KINDS[kind])
    whole = train(settings, tmp_path / "whole/sft")
    for at in ("sft.step-5", "sft.checkpoint-6.optimizer"):
        killed(settings, tmp_path / "killed/sft", at)
    assert train(settings, tmp_path / "killed/sft") == whole
    one, other = (curve(tmp_path / name / "sft") for name in ("whole", "killed"))
    assert one == other
    assert len([row for row in one if "pass_at_1" in row]) == 4
    for name in ["model"] + ["adapter"] * ("lora" in settings.model_fields_set):
        hashes = [store.hash_tree(tmp_path / run / "sft" / name) for run in ("whole", "killed")]
        assert hashes[0] == hashes[1]


@pytest.mark.parametrize("base", ["float32", "bfloat16", "int8"])
def test_adapters_are_saved_beside_the_merged_model(base: Any, world: Path, tmp_path: Path) -> None:
    import peft

    lora = LoraConfig(rank=4, targets=["q_proj", "v_proj", "down_proj"], base=base)
    dtype = "bfloat16" if base == "bfloat16" else "float32"
    said = train(config(world, lora=lora, lr=0.05, dtype=dtype), tmp_path)
    assert curve(tmp_path)[-1]["loss"] < curve(tmp_path)[0]["loss"] - 0.4
    start = models.load_model(world / "model")
    assert said["flops"] == 4.0 * models.num_parameters(start) * (
        said["loss_tokens"] + said["prompt_tokens"]
    )
    ids = torch.tensor([[5, 9, 3, 40, 41]])
    merged = models.load_model(tmp_path / "model")(ids).logits
    loaded = peft.PeftModel.from_pretrained(start, tmp_path / "adapter")
    torch.testing.assert_close(loaded(ids).logits, merged, rtol=1e-4, atol=1e-4)
    adapter = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    place = tmp_path / "adapter" / adapter["base_model_name_or_path"]
    assert place.resolve() == (world / "model").resolve()
    weights = load_file(tmp_path / "checkpoints/step-000008/model.safetensors")
    assert all(".lora_" in name for name in weights)
    frozen = "model.layers.0.self_attn.k_proj.weight"
    after = load_file(tmp_path / "model/model.safetensors")
    assert torch.equal(after[frozen], load_file(world / "model/model.safetensors")[frozen])


def test_dropout_does_not_depend_on_what_came_before(world: Path, tmp_path: Path) -> None:
    settings = config(world, lora=LoraConfig(rank=4, dropout=0.5), num_epochs=1)
    train(settings, tmp_path / "one")
    torch.rand(17)
    train(settings, tmp_path / "two")
    assert curve(tmp_path / "one") == curve(tmp_path / "two")
    train(config(world, lora=LoraConfig(rank=4), num_epochs=1), tmp_path / "three")
    assert curve(tmp_path / "one")[-1]["loss"] != curve(tmp_path / "three")[-1]["loss"]


@pytest.mark.parametrize(
    ("billions", "lr"),
    [(0.011, 1e-4), (1.54, 1e-4), (3.1, 1e-4), (7.6, 8e-5), (8.03, 5e-5), (14, 7e-5), (405, 2e-5)],
)
def test_without_a_rate_it_is_the_papers(billions: float, lr: float) -> None:
    settings = LessonsConfig(model="m", data="d", num_epochs=1)
    found, told = settings.peak_lr(round(billions * 1e9))
    assert found == lr
    assert told.startswith("DeepSeek-R1's for ")
    with_adapters = settings.model_copy(update={"lora": LoraConfig()})
    assert with_adapters.peak_lr(round(billions * 1e9))[0] == pytest.approx(10 * lr)
    assert settings.model_copy(update={"lr": 0.5}).peak_lr(1) == (0.5, "the recipe's")


def test_the_papers_rate_is_told(world: Path, tmp_path: Path) -> None:
    train(config(world, lr=None, num_epochs=1, warmup_ratio=0.0), tmp_path)
    assert curve(tmp_path)[0]["lr"] == 1e-4
    assert "lr 0.0001: DeepSeek-R1's for 1.5B" in (tmp_path / "log.txt").read_text()


def sampled(folder: Path, **summary: Any) -> str:
    """A table of traces by a stage that says this of itself."""
    folder.mkdir()
    store.write_sealed(folder / "stage.json", {"summary": summary})
    return str(folder / "traces")


def test_a_budget_pays_for_the_sampling_too(world: Path, tmp_path: Path) -> None:
    cost = {"num_epochs": None, "lr": 0.002}
    plain = train(config(world, num_flops=4e9, **cost), tmp_path / "plain")
    traces = sampled(tmp_path / "sample", flops=3e9, paid_tokens=0)
    charged = train(config(world, num_flops=4e9, charge=[traces], **cost), tmp_path / "charged")
    alone = train(config(world, num_flops=1e9, **cost), tmp_path / "alone")
    assert "charged_flops" not in plain
    assert charged.pop("charged_flops") == 3e9
    assert charged == alone, "what is left is a budget like any other, its learning rates too"
    assert curve(tmp_path / "charged") == curve(tmp_path / "alone")
    assert plain["flops"] == pytest.approx(4 * charged["flops"], rel=0.1)


def test_a_charge_that_nobody_can_pay_is_refused(world: Path, tmp_path: Path) -> None:
    traces = sampled(tmp_path / "sample", flops=3e9, paid_tokens=0)
    silent = sampled(tmp_path / "silent", accounts={})
    with pytest.raises(UserError, match=r"3e\+09 of 2e\+09 FLOPs, which leaves nothing"):
        train(config(world, num_epochs=None, num_flops=2e9, charge=[traces]), tmp_path / "out")
    with pytest.raises(UserError, match="from no stage that tells its FLOPs"):
        train(config(world, num_epochs=None, num_flops=2e9, charge=[silent]), tmp_path / "out")
    with pytest.raises(ValidationError, match="give num_flops"):
        config(world, charge=[traces])


def test_what_is_held_out_is_not_trained_on(world: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(rows(range(14, 20)))
    looks = ValidationConfig(every_steps=2, data=str(mixed))
    with pytest.raises(UserError, match="2 of its 6 examples are trained on; hold rows out"):
        train(config(world, validation=looks), tmp_path / "run")


def test_problems_for_a_judge_are_refused(world: Path, tmp_path: Path) -> None:
    problems = [make_problem("Nice?", "yes", verifier="judge")]
    tables.write_part(tmp_path / "problems", tables.to_table("problems", problems))
    looks = ValidationConfig(every_steps=2, problems=str(tmp_path / "problems"))
    with pytest.raises(UserError, match="its verifier is a judge"):
        train(config(world, validation=looks), tmp_path / "run")


def test_a_validation_looks_at_something() -> None:
    with pytest.raises(ValidationError, match="has nothing to look at; give it data"):
        ValidationConfig(every_steps=2)


def test_what_is_remembered_of_looks() -> None:
    seen = None
    history = [(1, 3.0, 0.2), (2, 2.0, 0.5), (3, 2.5, 0.5), (4, 1.9, 0.5), (5, 2.2, 0.1)]
    for step, loss, share in history:
        seen = remember(seen, {"step": step, "heldout_loss": loss, "pass_at_1": share})
    assert seen is not None
    assert seen["best"]["step"] == 4, "pass@1 chooses, the loss among equals"
    assert (seen["watched"], seen["since"]) == (-1.9, 1)
    seen = None
    for step, loss in enumerate([3.0, 2.0, 2.0, math.inf], 1):
        seen = remember(seen, {"step": step, "heldout_loss": loss})
    assert (seen["best"]["step"], seen["since"]) == (3, 2)
    seen = None
    for step, share in enumerate([0.1, 0.4, 0.4], 1):
        seen = remember(seen, {"step": step, "pass_at_1": share})
    assert (seen["best"]["step"], seen["since"]) == (3, 1), "of equals the last"


@pytest.mark.parametrize(
    ("package", "told", "extra"),
    [
        ("peft", {"lora": LoraConfig()}, "lora"),
        ("bitsandbytes", {"lora": LoraConfig(base="int8")}, "quantized"),
        ("torchao", {"optimizer": "adamw_8bit"}, "quantized"),
    ],
)
def test_a_package_that_is_missing_is_named(
    package: str,
    told: dict[str, Any],
    extra: str,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "limbeck.train.eight_bit", raising=False)
    with pytest.raises(UserError) as error:
        train(config(world, **told), tmp_path)
    assert str(error.value).endswith(f"needs {package}; pip install 'limbeck[{extra}]'")


def test_the_sizes_of_quantized_students(world: Path) -> None:
    student = models.load_model(world / "model")
    size = models.num_parameters(student)
    adapters.quantize(student, "nf4", torch.float32, "cpu")
    assert adapters.num_parameters(student) == size > models.num_parameters(student)
