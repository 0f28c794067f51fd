"""A number that is not finite, anywhere: it stops within its step, and nothing broken is saved."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from limbeck import store, tables
from limbeck.errors import UserError
from limbeck.folder import Machine, StageFolder
from limbeck.types import Message, Problem, Sampling
from tests.faults.child import limbeck_run

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from limbeck import models, newborn  # noqa: E402
from limbeck.engines import local_engine  # noqa: E402
from limbeck.engines.sampling import requests_for, write_missing  # noqa: E402
from limbeck.stages import sft  # noqa: E402
from limbeck.train import losses, training  # noqa: E402
from limbeck.train.checkpoint import _checkpoints, _problem, save_checkpoint  # noqa: E402
from limbeck.train.step import make_optimizer  # noqa: E402

NAN, INF = math.nan, math.inf
CHECKPOINT_STEPS = 3
STEPS = (1, 3, 4, 12)  # the first, one that a checkpoint follows, one behind it, the last
MACHINE = Machine(device="cpu", threads=1)


@dataclass(frozen=True)
class Point:
    """Where a value is broken: in what, to what, at which step, in which precision."""

    kind: str
    value: float
    step: int
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.kind} {self.value} step {self.step} {self.dtype}"


BROKEN = [
    ("loss", (NAN, INF, -INF)),
    ("gradient", (NAN, INF)),
    ("weight before the step", (NAN, -INF)),
    ("weight behind the step", (NAN, INF)),
    ("teacher's log-probs", (NAN, -INF)),
]
TRAINING = [
    Point(kind, value, step, ("float32", "bfloat16")[(i + j) % 2])
    for kind, values in BROKEN
    for i, value in enumerate(values)
    for j, step in enumerate(STEPS)
]
WRITING = [Point("logits", value, step) for value in (NAN, INF) for step in (1, 5, 11)]
POINTS = TRAINING + WRITING
IN_CI = TRAINING[::3] + WRITING


# -- training -----------------------------------------------------------------------------------


@dataclass
class Broken:
    """Stands in for train_step and breaks one step; remembers what it was given."""

    point: Point
    real: Callable[..., Any]
    taken: int = 0
    rows: list[str] = field(default_factory=list)

    def __call__(self, model: Any, batches: Sequence[Any], optimizer: Any, **knobs: Any) -> Any:
        self.taken += 1
        if self.taken != self.point.step:
            return self.real(model, batches, optimizer, **knobs)
        batches = list(batches)
        victim = len(batches) // 2  # with several, one in the middle
        self.rows = [name for batch in batches for name in batch.document_names]
        parameter = list(model.parameters())[self.taken % len(list(model.parameters()))]
        hook = None
        if self.point.kind == "loss":
            self.rows = list(batches[victim].document_names)
            knobs["token_loss"] = self._loss(batches[victim])
        elif self.point.kind == "teacher's log-probs":
            self.rows = list(batches[victim].document_names)
            for index, batch in enumerate(batches):
                logprobs = torch.full((batch.num_tokens,), -1.0)
                if index == victim:
                    logprobs[batch.loss_positions[0]] = self.point.value
                batches[index] = replace(batch, columns={"teacher": logprobs})
            knobs["token_loss"] = self._distilled
        elif self.point.kind == "gradient":
            hook = parameter.register_hook(self._poke)
        elif self.point.kind == "weight before the step":
            with torch.no_grad():
                parameter.copy_(self._poke(parameter))
        else:
            hook = optimizer.register_step_post_hook(
                lambda *_: parameter.data.copy_(self._poke(parameter.data))
            )
        try:
            return self.real(model, batches, optimizer, **knobs)
        finally:
            if hook:
                hook.remove()

    def _poke(self, tensor: Any) -> Any:
        poked = tensor.detach().clone()
        poked.view(-1)[poked.numel() // 3] = self.point.value
        return poked

    def _loss(self, victim: Any) -> Any:
        def token_loss(logits: Any, tok: Any) -> Any:
            loss = losses.cross_entropy(logits, tok)
            if tok.targets.equal(victim.loss_tokens().targets):
                loss = torch.cat([loss[:-1], loss[-1:] * 0 + self.point.value])
            return loss

        return token_loss

    @staticmethod
    def _distilled(logits: Any, tok: Any) -> Any:
        """What the student says of a token, less what the teacher says, as in reverse KL."""
        logp = logits.log_softmax(-1).gather(-1, tok.targets[:, None])[:, 0]
        return logp - tok.columns["teacher"]


@dataclass
class World:
    """A tiny model, what it learns, and how it comes out undisturbed, by precision."""

    folder: Path
    whole: dict[str, str] = field(default_factory=dict)

    def config(self, dtype: str) -> sft.Config:
        return sft.Config(
            model=str(self.folder / "model"),
            data=str(self.folder / "rows.jsonl"),
            lr=0.01,
            num_epochs=2,
            batch_size=4,
            micro_batch_tokens=48,
            checkpoint_steps=CHECKPOINT_STEPS,
            dtype=dtype,
        )

    def train(self, dtype: str, out: Path) -> str:
        """The hash of the weights that come out."""
        out.mkdir(parents=True, exist_ok=True)
        sft.run(self.config(dtype), StageFolder(out, "sft", "key", MACHINE))
        return store.hash_file(out / "model" / "model.safetensors")


def make_world(folder: Path) -> World:
    world = World(folder)
    rows = [
        {
            "id": f"row{i}",
            "messages": [
                {"role": "user", "content": f"{i}+{i}="},
                {"role": "assistant", "content": f"<think>{i} twice</think>{2 * i}"},
            ],
        }
        for i in range(24)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [message["content"] for row in rows for message in row["messages"]]
    tokenizer = newborn.train_tokenizer(iter(texts), 280)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 24, "num_key_value_heads": 2, "max_position_embeddings": 128}
    model = newborn.create_model(
        "llama", len(tokenizer), 0, tie_word_embeddings=False, **ends, **sizes
    )
    models.save_model(model, tokenizer, folder / "model")
    for dtype in ("float32", "bfloat16"):
        world.whole[dtype] = world.train(dtype, folder / dtype)
    return world


def break_training(world: World, point: Point, out: Path) -> list[str]:
    """What is wrong with how a training takes it; an empty list is right."""
    wrong, real = [], training.train_step
    broken = Broken(point, real)
    training.train_step = broken  # type: ignore
    try:
        world.train(point.dtype, out)
        return ["it was not noticed"]
    except UserError as error:
        said = str(error)
    finally:
        training.train_step = real
    if broken.taken != point.step:
        wrong.append(f"stopped {broken.taken - point.step} steps late")
    if f"step {point.step}:" not in said or "not finite" not in said:
        wrong.append(f"said {said!r}")
    if not all(f"{row}" in said for row in broken.rows):
        wrong.append(f"did not name rows {broken.rows}: {said!r}")
    wrong += saved(out, (point.step - 1) // CHECKPOINT_STEPS * CHECKPOINT_STEPS)
    if world.train(point.dtype, out) != world.whole[point.dtype]:
        wrong.append("what was resumed came out otherwise")
    return wrong


def saved(out: Path, newest: int) -> Iterator[str]:
    """What is broken on disk: no model, and good checkpoints up to step `newest`."""
    if (out / "model").exists():
        yield "a model was saved"
    kept = _checkpoints(out / "checkpoints")
    if [int(path.name[5:]) for path in kept[:1]] != ([newest] if newest else []):
        yield f"the newest checkpoint is {kept[:1]}, not of step {newest}"
    for path in kept:
        if _problem(path):
            yield f"{path.name}: {_problem(path)}"
        for file in path.glob("*.safetensors"):
            if not all(bool(torch.isfinite(tensor).all()) for tensor in load_file(file).values()):
                yield f"{file} holds a value that is not finite"


# -- writing ------------------------------------------------------------------------------------


class BrokenHead:
    """A model's head whose logits break in the second part, in one row at one token."""

    def __init__(self, head: Any, point: Point) -> None:
        self.head, self.weight, self.point, self.calls = head, head.weight, point, 0

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        logits = self.head(hidden).clone()
        if self.calls == self.point.step + 12:
            logits[-1, 7] = self.point.value
        return logits


def break_writing(world: World, point: Point, out: Path) -> list[str]:
    """An engine whose logits break in one row at one token: no trace of its batch is kept."""
    wrong: list[str] = []
    folder = StageFolder(out, "sample", "key", MACHINE)
    problems = [
        Problem(
            f"p{i}", (Message("user", f"{i}+{i}="),), f"{2 * i}", {"name": "number"}, "", "", {}
        )
        for i in range(6)
    ]
    requests = requests_for(problems, 2, 0, folder)
    temperature, top_p = ((0.0, 1.0), (1.0, 1.0), (0.7, 0.9))[point.step % 3]
    sampling = Sampling(temperature, top_p, 12)
    model, tokenizer = (load(world.folder / "model") for load in LOADERS)
    engine = local_engine.LocalEngine(model, tokenizer, name="tiny", batch_rows=4)
    engine.stops = ()  # so that every text reaches the token in question
    write = partial(write_missing, engine, requests, sampling, out / "traces", folder, 4)
    head = engine.decoder.head
    engine.decoder.head = BrokenHead(head, point)  # type: ignore
    try:
        write()
        return ["it was not noticed"]
    except UserError as error:
        named = re.search(r"model tiny: gives .* not finite for problem p[0-5];", str(error))
        if not named:
            wrong.append(f"said {error}")
    finally:
        engine.decoder.head = head
    if len(tables.parts(out / "traces")) != 1:
        wrong.append(f"{len(tables.parts(out / 'traces'))} parts were kept, not the first alone")
    write()
    whole = out / "whole"
    write_missing(engine, requests, sampling, whole / "traces", folder, 4)
    if store.hash_tree(out / "traces") != store.hash_tree(whole / "traces"):
        wrong.append("what was resumed came out otherwise")
    return wrong


LOADERS: tuple[Callable[[Path], Any], ...] = (models.load_model, models.load_tokenizer)


def break_at(world: World, point: Point, out: Path) -> list[str]:
    """What is wrong with how a point is taken."""
    out.mkdir(parents=True, exist_ok=True)
    return (break_writing if point in WRITING else break_training)(world, point, out)


# -- tests --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("numbers"))


def test_there_are_fifty_points() -> None:
    assert len(POINTS) >= 50


@pytest.mark.parametrize("point", IN_CI, ids=str)
def test_a_value_that_is_not_finite(world: World, tmp_path: Path, point: Point) -> None:
    assert not break_at(world, point, tmp_path / "out")


def test_moments_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = make_optimizer(model, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.state[model.weight]["exp_avg_sq"][0, 0] = INF
    with pytest.raises(UserError, match=r"weight\|exp_avg_sq is not finite"):
        save_checkpoint(tmp_path, 1, model, optimizer, {})
    assert not list(tmp_path.glob("step-*"))


def test_the_command_line_ends_in_one_line(world: World, tmp_path: Path) -> None:
    """Without any patch: a row whose weight overflows."""
    rows = store.read_jsonl(world.folder / "rows.jsonl")
    rows[5]["weight"] = 3e38
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {**world.config("float32").model_dump(exclude_unset=True), "data": str(data)}
    recipe = {
        "name": "numbers",
        "machine": {"threads": 1, "device": "cpu"},
        "stages": {"sft": config},
    }
    code, said = limbeck_run(recipe, tmp_path / "run", tmp_path)
    assert code == 2
    assert said.startswith("limbeck: sft step ") and said.count("\n") == 1
    assert "is not finite in the batch of rows " in said and "row5" in said
    assert not (tmp_path / "run" / "sft" / "model").exists()
    assert not list(saved(tmp_path / "run" / "sft", 0))
