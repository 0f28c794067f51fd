"""The stage that keeps a teacher's distributions: whom it asks, how it resumes, what it refuses."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

import limbeck
from limbeck import ledger, models, recipe, store
from limbeck.errors import UserError, UserErrors
from limbeck.stages import score
from limbeck.train import teacher
from limbeck.train.cache import open_cache
from limbeck.train.examples import pack_batches, read_lessons
from limbeck.types import Scored
from tests.engines.vllm_stand_in import StandIn, small_model
from tests.faults import small

torch.set_num_threads(1)

MACHINE = {"threads": 1, "device": "cpu"}
SERVED = {"logprobs_mode": "processed_logprobs"}  # what the engine asks of a server
CONTEXT = 96
NUM_ROWS = 30
PART_TOKENS = 120  # a few rows
PRELOAD = [
    "limbeck.api",
    "limbeck.stages.score",
    "limbeck.train.cache",
    "limbeck.reporting",
    "transformers.models.llama.modeling_llama",
    "openai",
]


@pytest.fixture(autouse=True)
def _quick_and_alone(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setattr(score, "PART_TOKENS", PART_TOKENS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return small_model(tmp_path_factory.mktemp("teacher") / "model", CONTEXT)


@pytest.fixture
def data(tmp_path) -> Path:
    return write(tmp_path / "data.jsonl", [row(i) for i in range(NUM_ROWS)])


def row(i: int, said: str = "") -> dict:
    answer = f"<think>{i}+1={i + 1}</think>{said}{i + 1}"
    turns = [{"role": "user", "content": f"What is {i} + 1?"}]
    return {"id": f"row-{i}", "messages": [*turns, {"role": "assistant", "content": answer}]}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def whole_recipe(data: Path | str, **settings) -> dict:
    settings = {"data": str(data), "num_top": 8, **settings}
    return {"name": "r", "machine": MACHINE, "stages": {"score": settings}}


def run(place: Path, data: Path, **settings) -> dict:
    """The manifest's summary."""
    return limbeck.run(whole_recipe(data, **settings), run=place).stages()[0]["summary"]


def refusal(act, *arguments, **settings) -> str:
    with pytest.raises((UserError, UserErrors)) as raised:
        act(*arguments, **settings)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def distributions(place: Path) -> dict[str, str]:
    return store.hash_tree(place / "score/distributions")


def columns(place: Path, data: Path, folder: Path) -> dict[str, torch.Tensor]:
    tokenizer = models.load_tokenizer(folder)
    kept = open_cache(place / "score/distributions", tokenizer)
    lessons = read_lessons(str(data), tokenizer, CONTEXT - 1)
    kept.check(lessons, 1.0, str(folder))
    (batch,) = pack_batches(lessons.examples, 10**6, "cpu")
    return {name: c[batch.loss_positions] for name, c in kept.columns(batch).items()}


def in_a_process(settings: dict, place: Path, kill_at: str = "") -> None:
    """A run in a process of its own, which dies where it is told to."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=_run_and_die, args=(settings, str(place), kill_at))
    process.start()
    process.join()
    assert process.exitcode == (-signal.SIGKILL if kill_at else 0)


def _run_and_die(settings: dict, place: str, kill_at: str) -> None:
    os.environ["LIMBECK_KILL_AT"] = kill_at
    score.PART_TOKENS = PART_TOKENS
    ledger.gemm_gflops = lambda *_: None  # half a second, of interest to people
    limbeck.run(settings, run=place)


# -- what is told -------------------------------------------------------------------------------


def test_verified_traces_are_scored_and_others_are_said_to_be_none(tmp_path):
    pytest.importorskip("reasoning_gym")
    made = small.up_to("create")
    curate = made["stages"]["curate"]
    stages = {
        **made["stages"],
        "unasked": {**curate, "stage": "curate", "keep": ["finished"]},
        "mix": {"parts": {"sums": "./curate/dataset"}},
        "mixed": {"stage": "mix", "parts": {"a": "./curate/dataset", "b": "./unasked/dataset"}},
    }
    for name, data in {
        "right": "./curate/dataset",
        "all": "./unasked/dataset",
        "right_mix": "./mix/dataset",
        "all_mix": "./mixed/dataset",
    }.items():
        stages[name] = {"stage": "score", "data": data, "teacher": "./create/model", "num_top": 5}
    run = limbeck.run({**made, "stages": stages}, run=tmp_path / "run")
    told = {stage["stage"]: stage["summary"] for stage in run.stages()}
    assert told["right"]["verified"]
    assert told["right_mix"]["verified"]
    assert not told["all"]["verified"]
    assert not told["all_mix"]["verified"]
    assert told["right"]["accounts"]["ok"] == told["curate"]["kept"]
    log = (tmp_path / "run/all_mix/log.txt").read_text()
    assert "unasked/dataset was curated without the filter correct" in log
    assert "verified" not in (tmp_path / "run/right/log.txt").read_text()


def test_the_size_is_told_before_and_after(tmp_path, data, folder):
    summary = run(tmp_path / "run", data, teacher=str(folder), temperatures=[1.0, 2.0])
    log = (tmp_path / "run/score/log.txt").read_text()
    tokens = summary["tokens"]
    assert f"{tokens:,} tokens to be learned: about" in log
    assert "56 bytes a token" in log  # 8 ids of 4 bytes, 8 of 2, two tails of 4
    assert summary["bytes"] < 56 * tokens + 1000 * len(list(tmp_path.glob("run/score/*/part-*")))
    assert 0 < summary["held"]["2"] < summary["held"]["1"] < 1
    assert "nobody verified" in log
    assert not summary["verified"]


def test_the_ledger_has_tokens_and_flops(tmp_path, data, folder):
    summary = run(tmp_path / "run", data, teacher=str(folder))
    rows = store.read_jsonl(tmp_path / "run/score/ledger.jsonl")
    tokenizer = models.load_tokenizer(folder)
    num_tokens = sum(read_lessons(str(data), tokenizer, CONTEXT).lengths)
    num_parameters = models.num_parameters(models.load_model(folder))
    assert len(rows) > 2
    assert sum(row["tokens_in"] for row in rows) == num_tokens > summary["tokens"]
    assert sum(row["flops"] for row in rows) == 2 * num_parameters * num_tokens


def test_rows_beyond_the_teachers_context_are_left_out_and_counted(tmp_path, folder):
    rows = [row(0), row(1, "so " * 200), row(2)]
    data = write(tmp_path / "data.jsonl", rows)
    summary = run(tmp_path / "run", data, teacher=str(folder))
    assert summary["refused"] == {"too long": 1}
    assert summary["accounts"]["ok"] == 2
    tokenizer = models.load_tokenizer(folder)
    kept = open_cache(tmp_path / "run/score/distributions", tokenizer)
    longer = read_lessons(str(data), tokenizer, 10_000)
    assert f"set max_length to {CONTEXT}" in refusal(kept.check, longer, 1.0)
    kept.check(read_lessons(str(data), tokenizer, kept.longest), 1.0)


def test_more_than_the_vocabulary_is_all_of_it(tmp_path, data, folder):
    run(tmp_path / "run", data, teacher=str(folder), num_top=10_000)
    told = columns(tmp_path / "run", data, folder)
    assert told["top_ids"].shape[1] == len(models.load_tokenizer(folder))
    assert (told["tails"] == teacher.NOTHING).all()


# -- killed, broken, changed --------------------------------------------------------------------


@pytest.mark.parametrize("method", ["top_k", "sample"])
def test_killed_in_the_middle_it_goes_on_to_the_same_files(tmp_path, data, folder, method):
    settings = whole_recipe(data, teacher=str(folder), method=method, micro_batch_tokens=64)
    in_a_process(settings, tmp_path / "whole")
    killed = tmp_path / "killed"
    in_a_process(settings, killed, "score.part-00001")
    before = {path.name: path.stat().st_mtime_ns for path in killed.glob("score/*/part-*")}
    assert len(before) == 1
    in_a_process(settings, killed, "score.part-00002.renamed")
    in_a_process(settings, killed, "distributions.distributions.json.aside")
    in_a_process(settings, killed)
    assert distributions(killed) == distributions(tmp_path / "whole")
    assert len(distributions(killed)) == 5  # three parts, the index, and what they are
    assert all(
        (killed / "score/distributions" / n).stat().st_mtime_ns == t for n, t in before.items()
    )


def test_a_part_that_broke_meanwhile_is_made_again(tmp_path, data, folder):
    settings = whole_recipe(data, teacher=str(folder))
    in_a_process(settings, tmp_path / "whole")
    killed = tmp_path / "killed"
    in_a_process(settings, killed, "score.part-00002")
    part = min(killed.glob("score/*/part-*"))
    part.write_bytes(part.read_bytes()[:-9])
    in_a_process(settings, killed)
    assert f"{part.name} changed on disk" in (killed / "score/log.txt").read_text()
    assert distributions(killed) == distributions(tmp_path / "whole")


def test_other_rows_are_another_stage(tmp_path, data, folder):
    run(tmp_path / "run", data, teacher=str(folder))
    write(data, [row(i, "Hm. ") for i in range(NUM_ROWS)])
    assert "data changed" in refusal(run, tmp_path / "run", data, teacher=str(folder))


# -- from a server ------------------------------------------------------------------------------


def engine(server: StandIn) -> dict:
    return {"name": "vllm", "model": str(server.folder), "base_url": server.url, "concurrency": 2}


def scored_ids(server: StandIn) -> list[tuple[int, ...]]:
    return [tuple(b["prompt"]) for path, b in server.requests if path == "/v1/completions"]


def test_a_server_tells_the_same(tmp_path, data, folder):
    pytest.importorskip("openai")
    with StandIn(folder, **SERVED) as server:
        run(tmp_path / "served", data, engine=engine(server))
    run(tmp_path / "here", data, teacher=str(folder))
    served, here = (columns(tmp_path / name, data, folder) for name in ("served", "here"))
    assert torch.equal(served["top_ids"], here["top_ids"])
    # Both are rounded to float16, by 2^-11 at most, of numbers that agree to float32.
    torch.testing.assert_close(served["top_logprobs"], here["top_logprobs"], rtol=2**-10, atol=0)
    torch.testing.assert_close(served["tails"], here["tails"], rtol=0, atol=1e-5)
    assert not list(tmp_path.glob("served/score/*.journal"))


def test_what_a_server_answered_is_never_asked_again(tmp_path, data, folder):
    pytest.importorskip("openai")
    killed = tmp_path / "killed"
    with StandIn(folder, **SERVED) as server:
        settings = whole_recipe(data, engine=engine(server))
        in_a_process(settings, killed, "score.journal-3")
        assert not list(killed.glob("score/*/part-*"))
        in_a_process(settings, killed, "score.part-00001")
        in_a_process(settings, killed, "score.part-00001.renamed")
        in_a_process(settings, killed)
        # One that was on its way when the first kill came may have been asked twice.
        assert NUM_ROWS <= len(scored_ids(server)) <= NUM_ROWS + 1
        assert len({*scored_ids(server)}) == NUM_ROWS
        in_a_process(settings, tmp_path / "whole")
    assert distributions(killed) == distributions(tmp_path / "whole")


def test_rows_beyond_a_servers_context_are_left_out(tmp_path, folder):
    pytest.importorskip("openai")
    data = write(tmp_path / "data.jsonl", [row(0), row(1, "so " * 200)])
    with StandIn(folder, **SERVED) as server:
        summary = run(tmp_path / "run", data, engine=engine(server))
    assert summary["refused"] == {"too long": 1}


def test_a_server_that_gives_less_says_what_it_needs(tmp_path, data, folder):
    pytest.importorskip("openai")
    with StandIn(folder, **SERVED) as server:
        said = refusal(run, tmp_path / "run", data, engine=engine(server), num_top=64)
    assert "--max-logprobs" in said


def test_an_engine_here_scores_as_well(tmp_path, data, folder):
    local = {"name": "local", "model": str(folder)}
    run(tmp_path / "asked", data, engine=local)
    run(tmp_path / "here", data, teacher=str(folder))
    asked, here = (columns(tmp_path / name, data, folder) for name in ("asked", "here"))
    torch.testing.assert_close(asked["top_logprobs"], here["top_logprobs"], rtol=2**-10, atol=0)


def test_rows_of_the_head_that_no_token_has_give_way():
    """A server names them; a student whose head is padded less does not have them."""
    example = teacher.Example([3, 4, 5], [0, 1, 1])
    logprobs = (-0.5, -1.5, -3.0)
    told = Scored((None, -0.5, -1.5), ((), (4, 11, 1), (2, 0, 1)), ((), logprobs, logprobs))
    found = teacher.heard(told, example, 3, num_tokens=10)
    assert found["ids"].tolist() == [[4, 0, 1], [2, 0, 1]]
    assert found["logprobs"].tolist() == [[-0.5, teacher.NOTHING, -3.0], [*logprobs]]
    kept = torch.tensor([[-0.5, -3.0, -torch.inf], [*logprobs]]).double().exp().sum(1)
    torch.testing.assert_close(found["tails"][:, 0].double(), (1 - kept).log(), rtol=1e-6, atol=0)


# -- what is refused ----------------------------------------------------------------------------


def nobody(*, model: str):
    """An engine that cannot score."""


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "needs a teacher or an engine"),
        ({"teacher": "m/m", "engine": {"name": "local", "model": "m/m"}}, "one of the two"),
        ({"teacher": "m/m", "temperatures": []}, "temperatures"),
        ({"teacher": "m/m", "temperatures": [1.0, 1.0]}, "drop it"),
        ({"teacher": "m/m", "method": "sample", "temperatures": [1.0, 2.0]}, "one temperature"),
        ({"teacher": "m/m", "method": "sample", "num_draws": 5000}, "num_draws"),
        ({"engine": {"name": "openai", "model": "m"}}, "engine openai tells no log-prob"),
        ({"engine": "worked"}, "engine worked tells no log-probabilities; take vllm"),
        ({"engine": {"name": "local", "model": "m/m"}, "method": "sample"}, "name a teacher"),
        ({"engine": {"name": "local", "model": "m/m"}, "temperatures": [2.0]}, "name a teacher"),
        ({"engine": {"name": "local", "model": "m/m"}, "dtype": "bfloat16"}, "dtype"),
        ({"teacher": "m/m", "num_tops": 3}, "did you mean 'num_top'"),
    ],
)
def test_mistakes_in_the_recipe_are_told_before_anything_runs(data, settings, says):
    assert says in refusal(recipe.load, whole_recipe(data, **settings))


def test_an_engine_of_ones_own_that_cannot_score(tmp_path, data, folder):
    own = {"name": f"{__name__}:nobody", "model": str(folder)}
    assert "tells no log-probabilities" in refusal(run, tmp_path / "run", data, engine=own)


def test_a_teacher_that_is_not_finite(tmp_path, data, folder):
    """Each of its weights is, what they add up to is not."""
    from limbeck import newborn

    tokenizer = models.load_tokenizer(folder)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    model = newborn.create_model("llama", len(tokenizer), 0, **ends, **sizes)
    model.get_output_embeddings().weight.data.fill_(1e38)
    models.save_model(model, tokenizer, tmp_path / "model")
    said = refusal(run, tmp_path / "run", data, teacher=str(tmp_path / "model"))
    assert "is not finite on rows row-" in said
    assert not list(tmp_path.glob("run/score/distributions/part-*"))


def test_two_rows_of_one_id(tmp_path, folder):
    data = write(tmp_path / "data.jsonl", [row(1), row(2), row(1)])
    said = refusal(run, tmp_path / "run", data, teacher=str(folder))
    assert "has 2 rows of the id row-1" in said


def test_a_plan_knows_what_distributions_are(tmp_path, data, folder):
    """`distill` reads them; what it names must be some, inside the run and outside."""
    pytest.importorskip("limbeck.stages.distill")
    run(tmp_path / "run", data, teacher=str(folder))
    scored = tmp_path / "run/score/distributions"

    def load(distributions):
        settings = {"model": str(folder), "data": str(data), "num_epochs": 1, "lr": 0.01}
        made = whole_recipe(data, teacher=str(folder))
        made["stages"]["distill"] = {**settings, "distributions": str(distributions)}
        return recipe.load(made)

    load("./score/distributions")
    load(scored)
    assert "it has no distributions.json" in refusal(load, tmp_path)
    assert "score writes no 'dataset'" in refusal(load, "./score/dataset")
    part = min(scored.glob("part-*"))
    part.write_bytes(part.read_bytes()[:-9])
    assert f"{part.name}" in refusal(load, scored)
    part.unlink()
    assert f"{part.name}' is missing" in refusal(load, scored)
