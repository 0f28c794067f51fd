"""Two processes that share a model train the model of one, and each goes on with the other's."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import limbeck
from limbeck import cli, models, newborn, processes, sharding, store
from limbeck.train import adapters
from limbeck.train.batch import collate, pack
from limbeck.train.checkpoint import load_best, load_newest, save_checkpoint
from limbeck.train.config import LoraConfig
from limbeck.train.head import TokenModel
from limbeck.train.losses import cross_entropy
from limbeck.train.step import NotFinite, deal, make_optimizer, train_step
from tests.numerics.test_packing import SIZES, VOCAB, make_examples, make_model

ROOT = Path(__file__).parents[2]
NUM = 2
PRELOAD = ["limbeck.api", "limbeck.train.training", "torch.distributed.fsdp", __name__]
MODELS = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "gpt2": ("gpt2", {"tie_word_embeddings": True}),
}
# How many tokens a batch may have, by step: one batch, three, eight, two and five of them.
BATCH_TOKENS = [1000, 30, 1, 50, 21]


@dataclass(frozen=True)
class Lesson:
    """What a process, or several together, are to train; `first` to `last` are its steps."""

    model: str = "llama"
    first: int = 0
    last: int = len(BATCH_TOKENS)
    frozen: bool = False
    adapted: bool = False
    recomputes: bool = False


@dataclass
class Told:
    """What came of it: each step's numbers, and what a checkpoint had said."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    heldout: float = 0.0
    state: Any = None


def make_student(lesson: Lesson) -> TokenModel:
    architecture, sizes = MODELS[lesson.model]
    if architecture == "gpt2":
        common = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
        plain = newborn.create_model("gpt2", VOCAB, 3, eos_token_id=1, pad_token_id=0, **common)
    else:
        plain = make_model(architecture, **sizes)
    if lesson.frozen:
        for name, parameter in plain.named_parameters():
            parameter.requires_grad_("mlp" in name)
    if lesson.adapted:
        adapters.attach(plain, LoraConfig(rank=4), seed=7)
    if lesson.recomputes:
        sharding.recompute_activations(plain)
    return TokenModel(plain)


def train(lesson: Lesson, folder: Path, out: Path) -> None:
    """Goes on from what lies in `folder`, saves there, and tells of it under `out`."""
    model = make_student(lesson)
    sharding.shard(model)
    optimizer = make_optimizer(model, lr=0.01, weight_decay=0.1)
    told = Told(state=load_newest(folder, model, optimizer))
    loaded = whole(model, optimizer)
    for step in range(lesson.first, lesson.last):
        examples = make_examples(seed=step)
        bins = pack([len(example.ids) for example in examples], BATCH_TOKENS[step])
        batches = [collate([examples[i] for i in one]) for one in bins]
        result = train_step(model, batches, optimizer, lr=0.01, clip=0.5, token_loss=cross_entropy)
        told.losses.append(result.loss)
        told.norms.append(result.grad_norm)
        told.weights.append(result.weight)
    with torch.no_grad():  # a look at held-out texts, behind which gathered weights may lie about
        told.heldout = model(collate(make_examples(seed=99)), cross_entropy).item()
    save_checkpoint(folder, lesson.last, model, optimizer, {"step": lesson.last})
    saved = whole(model, optimizer)
    if processes.leads():
        out.mkdir()
        save_file(loaded, out / "loaded.safetensors")
        save_file(saved, out / "saved.safetensors")
        (out / "told.json").write_text(json.dumps(asdict(told)))


def whole(model: TokenModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """All weights and moments, each of them whole."""
    tensors = dict(model.named_parameters())
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}|{key}"] = value
    return {
        name: (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone().contiguous()
        for name, t in tensors.items()
    }


def read(out: Path) -> Told:
    return Told(**json.loads((out / "told.json").read_text()))


# -- two processes -------------------------------------------------------------------------------


def in_two(work: Callable[..., None], *arguments: Any) -> list[int]:
    """The exit codes of two processes that do the same together, each its share."""
    return start_two(_together, work, *arguments)


def start_two(work: Callable[..., None], *arguments: Any) -> list[int]:
    """The exit codes of two processes that stand to each other as torchrun's do.

    Forked from one that has imported everything, which spares seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    port = free_port()
    meeting = torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    pair = [context.Process(target=_one, args=(r, port, work, *arguments)) for r in range(NUM)]
    for process in pair:
        process.start()
    for process in pair:
        process.join()
    del meeting
    return [process.exitcode or 0 for process in pair]


def _one(rank: int, port: int, work: Callable[..., None], *arguments: Any) -> None:
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(NUM),
        "LOCAL_WORLD_SIZE": str(NUM),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TOKENIZERS_PARALLELISM": "false",
    }
    torch.set_num_threads(1)
    work(*arguments)


def _together(work: Callable[..., None], *arguments: Any) -> None:
    processes.join()
    with processes.together():
        work(*arguments)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def train_all(lessons: dict[str, tuple[Lesson, Path]], out: Path) -> None:
    for name, (lesson, folder) in lessons.items():
        train(lesson, folder, out / name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders one/NAME and two/NAME: the same lessons by one process and by two."""
    folder = tmp_path_factory.mktemp("sharding")
    lessons = {name: Lesson(name) for name in MODELS}
    lessons |= {"frozen": Lesson(frozen=True), "recomputed": Lesson(recomputes=True)}
    if find_spec("peft"):
        lessons["adapted"] = Lesson(adapted=True, recomputes=True)
    lessons["first half"] = Lesson(last=3)
    for number in ("one", "two"):
        (folder / number).mkdir()
        given = {n: (lesson, folder / number / f"{n} kept") for n, lesson in lessons.items()}
        if number == "one":
            train_all(given, folder / number)
        else:
            assert in_two(train_all, given, folder / number) == [0, 0]
    return folder


@pytest.mark.parametrize("name", [*MODELS, "frozen", "recomputed", "adapted"])
def test_two_processes_train_what_one_does(trained: Path, name: str) -> None:
    if name == "adapted":
        pytest.importorskip("peft")
    one, two = (read(trained / number / name) for number in ("one", "two"))
    assert len(two.losses) == len(BATCH_TOKENS)
    assert two.losses == pytest.approx(one.losses, rel=1e-6)  # float32 sums
    assert two.norms == pytest.approx(one.norms, rel=1e-5)
    assert two.weights == one.weights
    assert two.heldout == pytest.approx(one.heldout, rel=1e-6)
    weights = [load_file(trained / n / name / "saved.safetensors") for n in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for key, tensor in weights[0].items():
        if "c_attn.bias" not in key:  # that of keys has no effect, its gradient is rounding alone
            # Adam's quotient enlarges the error where gradients are tiny
            torch.testing.assert_close(weights[1][key], tensor, rtol=1e-4, atol=2e-5, msg=key)


def test_recomputing_activations_changes_no_bit(trained: Path) -> None:
    assert read(trained / "two" / "recomputed") == read(trained / "two" / "llama")
    plain, again = (
        load_file(trained / "two" / name / "saved.safetensors") for name in ("llama", "recomputed")
    )
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_what_one_number_saved_another_resumes(trained: Path, tmp_path: Path) -> None:
    rest = Lesson(first=3)
    whole_run = read(trained / "one" / "llama")
    train(rest, trained / "two" / "first half kept", tmp_path / "two then one")
    given = {"one then two": (rest, trained / "one" / "first half kept")}
    assert in_two(train_all, given, tmp_path) == [0, 0]
    for before, after in (("two", "two then one"), ("one", "one then two")):
        saved = load_file(trained / before / "first half" / "saved.safetensors")
        loaded = load_file(tmp_path / after / "loaded.safetensors")
        assert saved.keys() == loaded.keys() and any("|exp_avg_sq" in name for name in saved)
        assert all(torch.equal(saved[name], loaded[name]) for name in saved)  # every bit
        told = read(tmp_path / after)
        assert told.state == {"step": 3}
        assert told.losses == pytest.approx(whole_run.losses[3:], rel=1e-6)  # float32 sums


@pytest.mark.parametrize("number", ["one", "two"])
def test_frozen_weights_are_not_saved_and_nothing_is_pickled(trained: Path, number: str) -> None:
    (path,) = (trained / number / "frozen kept").glob("step-*")
    tensors = sorted(path.glob("*.safetensors"))
    assert len(tensors) == 2 == len(list(path.iterdir())) - len(["manifest.json", "state.json"])
    kept = {name for file in tensors for name in load_file(file)}
    assert len(kept) > 6 and all("mlp" in name for name in kept)


def test_every_process_gets_as_many_batches() -> None:
    batches = [collate(make_examples(seed=seed)[: seed + 1]) for seed in range(5)]
    for num in range(1, 8):
        dealt = [list(deal(batches, rank, num)) for rank in range(num)]
        assert {len(one) for one in dealt} == {math.ceil(len(batches) / num)}
        pairs = [pair for one in dealt for pair in one]
        assert sorted(index for index, _ in pairs if index is not None) == list(range(5))
        assert sum(batch.total_weight for _, batch in pairs) == sum(
            batch.total_weight for batch in batches
        )
        assert all(batch.weights.sum() == 0 for index, batch in pairs if index is None)


def break_step(out: Path) -> None:
    """A loss that is not finite in one batch, which the second process has."""
    model = make_student(Lesson())
    sharding.shard(model)
    batches = [collate([example]) for example in make_examples() if len(example.ids) > 1]
    victim = batches[3].loss_tokens().targets

    def token_loss(logits: torch.Tensor, tok: Any) -> torch.Tensor:
        bad = math.nan if tok.targets.equal(victim) else 0.0
        return cross_entropy(logits, tok) + bad

    try:
        train_step(
            model, batches, make_optimizer(model, 0.1), lr=0.1, clip=1.0, token_loss=token_loss
        )
    except NotFinite as error:
        told = processes.gather([processes.rank(), str(error)])
        if processes.leads():
            out.write_text(json.dumps([told, processes.agreed("ä\n"), len(batches)]))
        else:
            assert processes.agreed("of a follower") == "ä\n"


def test_all_stop_at_a_number_that_is_not_finite(tmp_path: Path) -> None:
    assert in_two(break_step, tmp_path / "told") == [0, 0]
    told, agreed, _ = json.loads((tmp_path / "told").read_text())
    what = "the loss is not finite in batch 3"
    assert told == [[0, what], [1, what]] and agreed == "ä\n"


def save_and_find_best(folder: Path) -> None:
    """A checkpoint that is the best, one that is not, and the model of each."""
    model = make_student(Lesson("llama tied"))
    sharding.shard(model)
    optimizer = make_optimizer(model, 0.1)
    tokenizer = newborn.train_tokenizer(iter(["1+1=2"]), 270)
    for step in (1, 2):
        train_step(
            model,
            [collate(make_examples(seed=step))],
            optimizer,
            lr=0.1,
            clip=1.0,
            token_loss=cross_entropy,
        )
        save_checkpoint(folder / "kept", step, model, optimizer, {"step": step}, step == 1)
        models.save_model(model.model, tokenizer, folder / f"step {step}")
    assert load_best(folder / "kept", model) == {"step": 1}
    models.save_model(model.model, tokenizer, folder / "best")


def test_a_model_is_saved_by_one_and_its_best_is_found(tmp_path: Path) -> None:
    assert in_two(save_and_find_best, tmp_path) == [0, 0]
    hashes = {path.name: store.hash_tree(path) for path in tmp_path.iterdir()}
    assert hashes["best"] == hashes["step 1"] != hashes["step 2"]
    saved = load_file(tmp_path / "best" / "model.safetensors")
    plain = make_student(Lesson("llama tied")).model
    models.save_model(plain, newborn.train_tokenizer(iter(["1+1=2"]), 270), tmp_path / "plain")
    shapes = {name: t.shape for name, t in load_file(tmp_path / "plain/model.safetensors").items()}
    assert {name: tensor.shape for name, tensor in saved.items()} == shapes
    assert "lm_head.weight" not in saved


# -- whole runs ----------------------------------------------------------------------------------


def limbeck_run(recipe: Path, run: Path, kill_at: str, stderr: Path) -> None:
    """`limbeck run` in one of the two; the second is killed at a point of its way."""
    if processes.leads():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    else:
        os.environ["LIMBECK_KILL_AT"] = kill_at
    sys.stderr = stderr.open("a")
    sys.argv = ["limbeck", "run", str(recipe), "--run", str(run), "--quiet"]
    cli.main()


def torchrun(recipe: Path, run: Path) -> tuple[int, str]:
    """(exit code, stdout and stderr) of `limbeck run` by torchrun's two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(NUM)]
    command += ["--master-port", str(free_port()), "-m", "--"]
    command += ["limbeck", "run", str(recipe), "--run", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that trains a tiny model on a few sums."""
    folder = tmp_path_factory.mktemp("recipe")
    turns = [(f"{i}+{i}=", f"<think>{i} twice</think>{2 * i}") for i in range(24)]
    rows = [
        {
            "id": f"row{i}",
            "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}],
        }
        for i, (q, a) in enumerate(turns)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    create = {"texts": str(folder / "rows.jsonl"), "architecture": "llama", "vocab_size": 280}
    create |= {"hidden_size": 16, "num_hidden_layers": 1, "tie_word_embeddings": True}
    sft = {"model": "./create/model", "data": str(folder / "rows.jsonl"), "lr": 0.01}
    sft |= {"num_epochs": 2, "batch_size": 5, "micro_batch_tokens": 48, "checkpoint_steps": 3}
    machine = {"threads": 1, "device": "cpu"}
    stages = {"create": create, "sft": sft}
    path = folder / "sums.yaml"
    path.write_text(json.dumps({"name": "sums", "machine": machine, "stages": stages}))
    return path


def test_a_recipe_by_two_is_killed_and_resumed_by_two(recipe: Path, tmp_path: Path) -> None:
    """SIGKILL of the second process ends the first, too; the model is that of one process."""
    one, two, stderr = tmp_path / "one", tmp_path / "two", tmp_path / "stderr"
    codes = start_two(limbeck_run, recipe, two, "sft.step-5", stderr)
    assert codes == [1, -signal.SIGKILL]
    (line,) = stderr.read_text().splitlines()
    assert line.startswith("limbeck: another process of this run has ended; what was finished is")
    assert [path.name for path in (two / "sft/checkpoints").iterdir()] == ["step-000003"]
    assert not (two / "sft/model").exists()

    code, said = torchrun(recipe, two)
    assert code == 0 and said.count("report: ") == 1, said
    assert "2 processes" not in said
    rows = store.read_jsonl(two / "sft/metrics.jsonl")
    assert [row["step"] for row in rows[-7:]] == list(range(4, 11))
    assert store.read_sealed(two / "sft/started.json")["machine"]["processes"] == NUM

    limbeck.run(recipe, run=one)
    models = [load_file(run / "sft/model/model.safetensors") for run in (one, two)]
    assert models[0].keys() == models[1].keys()
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor, rtol=1e-4, atol=2e-5, msg=name)
    summaries = [store.read_sealed(run / "sft/stage.json")["summary"] for run in (one, two)]
    assert summaries[0] == summaries[1]


def test_what_two_began_one_may_end_and_says_so(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert start_two(limbeck_run, recipe, run, "sft.step-4", tmp_path / "stderr")[0] == 1
    limbeck.run(recipe, run=run)
    assert "begun by 2 processes, 1 go on" in (run / "sft/log.txt").read_text()


@pytest.mark.parametrize(
    "fault", ["a mistake of all", "a mistake of the leader", "a broken recipe"]
)
def test_every_mistake_is_one_line(recipe: Path, tmp_path: Path, fault: str) -> None:
    """A row whose weight overflows, a run folder of another recipe, a broken recipe."""
    described = json.loads(recipe.read_text())
    run, stderr = tmp_path / "run", tmp_path / "stderr"
    if fault == "a mistake of all":
        rows = store.read_jsonl(Path(described["stages"]["sft"]["data"]))
        rows[5]["weight"] = 3e38
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        described["stages"]["sft"]["data"] = str(tmp_path / "rows.jsonl")
        what = "sft step "
    elif fault == "a mistake of the leader":
        run.mkdir()
        (run / "stranger").touch()
        what = f"{run}: is not a run folder"
    else:
        described["stages"]["sft"]["lr"] = "much"
        what = f"{tmp_path / 'recipe.yaml'}:1: stages.sft.lr"
    (tmp_path / "recipe.yaml").write_text(json.dumps(described))
    codes = start_two(limbeck_run, tmp_path / "recipe.yaml", run, "", stderr)
    (line,) = stderr.read_text().splitlines()
    assert codes == [2, 2] and line.startswith(f"limbeck: {what}")
