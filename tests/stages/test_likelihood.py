"""likelihood: nats per token of gold answers, against plain computations; and how compare reads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck import ledger, metrics, store, tables
from limbeck.errors import UserError
from limbeck.folder import Machine, StageFolder
from limbeck.problems import make_problem

torch = pytest.importorskip("torch")
from torch.nn.functional import kl_div  # noqa: E402

from limbeck import chat, models, newborn  # noqa: E402
from limbeck.stages import compare, likelihood  # noqa: E402

MACHINE = Machine(device="cpu", threads=1)
TEXTS = [f"{a} and {b} make {a + b}." for a in range(12) for b in range(12)]


def make_model(folder: Path, tokenizer: Any, architecture: str, seed: int, padding: int) -> None:
    model = newborn.create_model(
        architecture,
        len(tokenizer) + padding,
        seed,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    models.save_model(model, tokenizer, folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of two families, a teacher with more padding, one that cuts otherwise; problems."""
    folder = tmp_path_factory.mktemp("world")
    tokenizer = newborn.train_tokenizer(iter(TEXTS), 300)
    make_model(folder / "llama", tokenizer, "llama", 1, 0)
    make_model(folder / "gpt2", tokenizer, "gpt2", 2, 0)
    make_model(folder / "padded", tokenizer, "llama", 3, 40)
    letters = newborn.train_tokenizer(iter(TEXTS), 280, isolate=r"\d|[a-z]")
    make_model(folder / "foreign", letters, "llama", 4, 0)
    problems = [
        make_problem(f"{n // 12} + {n % 12}?", TEXTS[n] if n % 2 else f"{n}", verifier="squad")
        for n in range(0, 144, 7)
    ]
    tables.write_part(folder / "problems", tables.to_table("problems", problems))
    return folder


def measure(world: Path, folder: Path, **knobs: Any) -> list[dict[str, Any]]:
    paths = {key: str(world / name) for key, name in knobs.items() if key in ("model", "teacher")}
    asked = {"problems": {"heldout": str(world / "problems")}}
    config = likelihood.Config.model_validate(asked | knobs | paths)
    folder.mkdir(parents=True)
    summary = likelihood.run(config, StageFolder(folder, "likelihood", machine=MACHINE))
    store.write_json(folder / "summary.json", summary)
    return tables.read_table(folder / "scores").to_pylist()


def plainly(world: Path, model: str, teacher: str) -> dict[str, tuple[float, float, int]]:
    """(nll, kl, tokens) of each problem, one text at a time, in float64, by whole logits."""
    tokenizer = models.load_tokenizer(world / model)
    pair = [models.load_model(world / name).double().eval() for name in (model, teacher)]
    found = {}
    for problem in tables.read_problems(world / "problems"):
        ids, mask = chat.encode_example(tokenizer, problem.messages, problem.answer)
        first = mask.index(1)
        assert tokenizer.decode(ids[first:]) == problem.answer + "<|end|>"  # and nothing else
        with torch.no_grad():
            logp, wanted = (
                m(torch.tensor([ids])).logits[0, first - 1 : -1, : len(tokenizer)].log_softmax(-1)
                for m in pair
            )
        nll = -logp.gather(1, torch.tensor(ids[first:])[:, None]).mean()
        kl = kl_div(logp, wanted, log_target=True, reduction="sum") / len(logp)
        found[problem.id] = (float(nll), float(kl), len(logp))
    return found


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("micro_batch_tokens", [1, 40, 8192])
def test_equals_plain_transformers_however_it_is_packed(world, tmp_path, model, micro_batch_tokens):
    rows = measure(
        world, tmp_path / "a", model=model, teacher="llama", micro_batch_tokens=micro_batch_tokens
    )
    expected = plainly(world, model, "llama")
    assert [row["metric"] for row in rows] == ["kl"] * len(expected) + ["nll"] * len(expected)
    for row in rows:
        nll, kl, num_tokens = expected[row["problem_id"]]
        # float32 sums of 16 products against float64
        assert row["value"] == pytest.approx(nll if row["metric"] == "nll" else kl, abs=2e-5)
        assert (row["weight"], row["completion_tokens"]) == (num_tokens, num_tokens)


def test_a_teacher_with_more_padding_is_compared_on_what_both_have(world, tmp_path):
    rows = measure(world, tmp_path / "a", model="llama", teacher="padded")
    values = [row["value"] for row in rows if row["metric"] == "kl"]
    expected = [kl for _, kl, _ in plainly(world, "llama", "padded").values()]
    assert values == pytest.approx(expected, abs=2e-5)


def test_a_teacher_that_cuts_otherwise_is_refused(world, tmp_path):
    with pytest.raises(UserError, match="foreign: it cuts texts into other tokens"):
        measure(world, tmp_path / "a", model="llama", teacher="foreign")


def test_a_text_longer_than_the_context(world, tmp_path):
    long = make_problem("1 " * 80, "2", verifier="squad")
    tables.write_part(tmp_path / "problems", tables.to_table("problems", [long]))
    asked = {"heldout": str(tmp_path / "problems")}
    with pytest.raises(UserError, match=f"problem {long.id}: has .* the model's context 64"):
        measure(world, tmp_path / "a", model="llama", problems=asked)


def test_what_is_timed_has_been_warm_before(world, tmp_path, monkeypatch):
    seen = []
    each, clock = likelihood._each, likelihood.time.perf_counter
    monkeypatch.setattr(likelihood, "_each", lambda *a: seen.append("batch") or each(*a))
    monkeypatch.setattr(likelihood.time, "perf_counter", lambda: seen.append("clock") or clock())
    measure(world, tmp_path / "a", model="llama", micro_batch_tokens=60)
    begun = seen.index("clock")
    assert seen[:begun] == ["batch"] and seen[begun + 1 :].index("clock") > 1
    told = store.read_json(tmp_path / "a" / "summary.json")
    assert told["tokens_per_second"] > 0 and told["peak_memory_mib"] > 0
    assert told["num_bytes"] == 4 * told["num_parameters"]


def test_what_is_not_finite_is_no_result(world, tmp_path, monkeypatch):
    each = likelihood._each
    monkeypatch.setattr(likelihood, "_each", lambda *args: each(*args) * float("nan"))
    with pytest.raises(UserError, match=r"problem \w+: its nats are not finite"):
        measure(world, tmp_path / "a", model="llama")
    assert not (tmp_path / "a" / "scores").exists()


def test_perplexity_is_that_of_all_tokens(world, tmp_path):
    rows = measure(world, tmp_path / "a", model="llama")
    nats = sum(row["value"] * row["weight"] for row in rows)
    tokens = sum(row["weight"] for row in rows)
    nll, perplexity = metrics.summarise(rows, ("split", "metric"))
    assert nll["value"] == pytest.approx(nats / tokens)
    assert perplexity["value"] == pytest.approx(math.exp(nats / tokens))
    assert nll["low"] < nll["value"] < nll["high"]
    assert perplexity["low"] == pytest.approx(math.exp(nll["low"]))
    assert nll["value"] != pytest.approx(np.mean([row["value"] for row in rows]), abs=1e-4)


def compared(folder: Path, pair: list[str], metric: Any, **scores: Path) -> dict[str, Any]:
    paths = {name: str(path / "scores") for name, path in scores.items()}
    config = compare.Config(scores=paths, pairs=[pair], metric=metric)
    folder.mkdir()
    compare.run(config, StageFolder(folder, "compare", machine=MACHINE))
    return store.read_json(folder / "results" / "results.json")


def test_less_is_better_and_tokens_count(world, tmp_path):
    for name in ("llama", "gpt2"):
        measure(world, tmp_path / name, model=name, teacher="llama")
    scores = {name: tmp_path / name for name in ("llama", "gpt2")}
    found = compared(tmp_path / "compare", ["llama", "gpt2"], ["kl", "nll"], **scores)
    kl, nll = found["tests"]
    assert (kl["metric"], kl["unit"], kl["verdict"]) == ("kl", "nats", "a better")
    assert kl["difference"] < 0 and kl["high"] < 0
    results = {(row["name"], row["metric"]): row for row in found["results"]}
    assert results["llama", "kl"]["value"] == pytest.approx(0.0, abs=1e-6)
    difference = results["llama", "nll"]["value"] - results["gpt2", "nll"]["value"]
    assert nll["difference"] == pytest.approx(difference)
    assert {row["unit"] for row in found["results"] if row["metric"] != "perplexity"} == {"nats"}


def test_what_only_one_has_is_not_compared_and_other_tokens_are_refused(world, tmp_path):
    measure(world, tmp_path / "llama", model="llama", teacher="llama")
    measure(world, tmp_path / "foreign", model="foreign")
    scores = {name: tmp_path / name for name in ("llama", "foreign")}
    assert compared(tmp_path / "a", ["llama", "foreign"], "kl", **scores)["tests"] == []
    with pytest.raises(UserError, match="into other tokens"):
        compared(tmp_path / "b", ["llama", "foreign"], "nll", **scores)


def test_scores_of_before_read_as_ever(tmp_path):
    rows = [
        {"split": "s", "metric": "pass_at_1", "problem_id": str(n), "domain": "", "num_samples": 3,
         "num_correct": n % 4, "num_failed": 0, "num_truncated": 0, "prompt_tokens": 1,
         "completion_tokens": 2, "flops": 1.0}
        for n in range(20)
    ]  # fmt: skip
    new = [{**row, "value": row["num_correct"] / 3, "weight": 1.0} for row in rows]
    assert metrics.result(rows) == metrics.result(new)
    assert "unit" not in metrics.result(new)
    old = tables.to_table("scores", new).drop_columns(["value", "weight"])
    tables.write_part(tmp_path / "old" / "scores", old)
    tables.write_part(tmp_path / "new" / "scores", tables.to_table("scores", new))
    pair = {"old": tmp_path / "old", "new": tmp_path / "new"}
    found = compared(tmp_path / "compare", ["old", "new"], "pass_at_1", **pair)
    assert found["tests"][0]["difference"] == 0.0
    assert found["results"][0]["value"] == found["results"][1]["value"]


def test_a_peak_of_memory_is_that_of_the_work(tmp_path):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux forgets a peak")
    path = tmp_path / "ledger.jsonl"
    with ledger.account(path, "large"):
        bytes(bytearray(200 << 20))
        with ledger.account(path, "inside"):
            pass
    with ledger.account(path, "small"):
        pass
    inside, large, small = map(json.loads, path.read_text().splitlines())
    assert large["peak_memory_mib"] > small["peak_memory_mib"] + 150
    assert large["peak_memory_mib"] > inside["peak_memory_mib"] + 150
