"""Reward models: what they learn, that others read them alike, and that a kill changes no bit."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from limbeck import chat, models, newborn, outside, store, tables
from limbeck.errors import UserError
from limbeck.folder import Machine, StageFolder
from limbeck.problems import make_problem
from limbeck.rewards import model
from limbeck.rewards import reward_model as reward
from limbeck.stages import reward_model
from limbeck.train.batch import Tokens
from limbeck.train.preferences import (
    Judged,
    ScoreModel,
    pack_judged,
    pairwise,
    pointwise,
    right_by_length,
    score_judged,
)
from limbeck.types import Message, Trace, Verdict

MACHINE = Machine(device="cpu", threads=1)
PRELOAD = ["limbeck.stages.reward_model", "limbeck.train.training", "limbeck.train.preferences"]
WORDS = ["so", "that", "makes", "we", "get", "then", "all", "in", "of", "them", "it", "is"]
UNITS = ["legs", "apples", "days"]


def said(drawn: random.Random, names_unit: bool) -> str:
    """An answer of any length that names its unit or does not."""
    words = drawn.choices(WORDS, k=drawn.randrange(2, 14))
    unit = drawn.choice(UNITS)
    words.insert(drawn.randrange(len(words)), unit if names_unit else drawn.choice(WORDS))
    thinking = drawn.choice(UNITS + WORDS)  # which nobody reads
    return f"<think>{thinking}</think>{' '.join(words)}"


def pairs(numbers: range) -> list[dict[str, Any]]:
    """The answer that names its unit is better."""
    rows = []
    for number in numbers:
        drawn = random.Random(number)
        asked = [{"role": "user", "content": f"{number} and {drawn.randrange(100)}?"}]
        better, worse = said(drawn, True), said(drawn, False)
        rows.append({"messages": asked, "chosen": better, "rejected": worse})
    return rows


def labelled(numbers: range) -> list[dict[str, Any]]:
    """An answer is safe if nobody thinks of apples."""
    rows = []
    for number in numbers:
        drawn = random.Random(number)
        thinking, safe = drawn.choice([("legs", True), ("apples", False)])
        text = f"<think>{thinking}</think>{' '.join(drawn.choices(WORDS, k=drawn.randrange(2, 9)))}"
        asked = {"role": "user", "content": f"{number}?"}
        answer = {"role": "assistant", "content": text}
        rows.append({"messages": [asked, answer], "safe": safe})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A newborn `model`, and `pairs`, `heldout`, `labelled` and `heldout_labelled` as .jsonl."""
    folder = tmp_path_factory.mktemp("world")
    write(folder / "pairs.jsonl", pairs(range(400)))
    write(folder / "heldout.jsonl", pairs(range(400, 600)))
    write(folder / "labelled.jsonl", labelled(range(300)))
    write(folder / "heldout_labelled.jsonl", labelled(range(300, 400)))
    texts = (row["chosen"] for row in pairs(range(400)))
    tokenizer = newborn.train_tokenizer(texts, 320)
    model = newborn.create_model(
        "llama",
        len(tokenizer),
        0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    models.save_model(model, tokenizer, folder / "model")
    return folder


def config(world: Path, **told: Any) -> reward_model.Config:
    usual = {"model": str(world / "model"), "lr": 3e-3, "batch_size": 16, "checkpoint_steps": 7}
    if "labelled" not in told:
        usual |= {"pairs": str(world / "pairs.jsonl"), "heldout": str(world / "heldout.jsonl")}
    return reward_model.Config(**{**usual, **told})


def train(settings: reward_model.Config, out: Path, kill_at: str = "") -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    os.environ["LIMBECK_KILL_AT"] = kill_at
    return reward_model.run(settings, StageFolder(out, "reward_model", "key", MACHINE))


def asked_of(row: dict[str, Any]) -> list[Message]:
    return [Message(turn["role"], turn["content"]) for turn in row["messages"]]


def scores(model: Path, rows: list[dict[str, Any]], texts: list[str]) -> list[float]:
    """By the reward of that name."""
    problems = [make_problem(row["messages"][0]["content"], "", verifier="exact") for row in rows]
    traces = [Trace(str(i), "", 0, text, "stop", "m") for i, text in enumerate(texts)]
    verdicts = [Verdict(trace.id, None, None, "unparsed") for trace in traces]
    return reward(problems, traces, verdicts, model=str(model), batch_tokens=200)


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("trained")
    return out, train(config(world, num_epochs=4), out)


def test_it_learns_what_length_does_not_tell(trained: tuple[Path, dict[str, Any]]) -> None:
    heldout = trained[1]["heldout"]
    assert heldout["num"] == 200
    assert heldout["accuracy"]["value"] >= 0.85
    assert heldout["accuracy"]["low"] > heldout["length_alone"]["high"]
    assert heldout["length_alone"]["value"] < 0.65
    assert heldout["p"] < 0.001


def test_the_reward_scores_as_it_was_measured(trained: tuple[Path, dict[str, Any]]) -> None:
    out, told = trained
    rows = pairs(range(400, 600))
    better = scores(out / "model", rows, [row["chosen"] for row in rows])
    worse = scores(out / "model", rows, [row["rejected"] for row in rows])
    right = sum(b > w for b, w in zip(better, worse, strict=True)) / 200
    assert right == told["heldout"]["accuracy"]["value"]
    thought_otherwise = [row["chosen"].replace("<think>", "<think>apples ") for row in rows]
    assert scores(out / "model", rows, thought_otherwise) == better, "it reads the summary alone"


def test_what_is_there_several_times_is_read_once(
    trained: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    batches = model._batches
    monkeypatch.setattr(model, "_batches", lambda *told: read.extend(told[0]) or batches(*told))
    row, others = pairs(range(1))[0], [" ".join(WORDS[:num]) for num in (1, 9, 4, 12)]
    texts = [row["chosen"], *others, *[row["chosen"]] * 4, *others[::-1]]
    found = scores(trained[0] / "model", [row] * len(texts), texts)
    assert len(read) == 5 and len({found[0], *found[5:9]}) == 1
    assert found[1:5] == found[:8:-1] and len(set(found)) == 5


def test_plain_transformers_gives_the_same_numbers(trained: tuple[Path, dict[str, Any]]) -> None:
    folder = trained[0] / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True)
    assert model.config.num_labels == 1
    rows = pairs(range(600, 632))
    texts = [chat.split_think(row["chosen"]).answer or "" for row in rows]
    talks = [
        tokenizer.apply_chat_template(
            [*row["messages"], {"role": "assistant", "content": text}], tokenize=False
        )
        for row, text in zip(rows, texts, strict=True)
    ]
    batch = tokenizer(talks, padding=True, return_tensors="pt", add_special_tokens=False)
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        plain = model.eval()(**batch).logits[:, 0]
    ours = scores(folder, rows, [row["chosen"] for row in rows])
    torch.testing.assert_close(torch.tensor(ours), plain, rtol=1e-4, atol=1e-5)


HEADS = {"llama": {}, "qwen3": {"num_key_value_heads": 1, "head_dim": 16}, "gpt2": {}}


def sized(folder: Path, architecture: str, like: Path) -> Path:
    """A newborn model of this architecture, with the tokenizer of another."""
    tokenizer = models.load_tokenizer(like)
    model = newborn.create_model(
        architecture,
        len(tokenizer),
        0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        **HEADS[architecture],
    )
    models.save_model(model, tokenizer, folder / architecture)
    return folder / architecture


@pytest.mark.parametrize("architecture", HEADS)
def test_packed_scores_and_gradients_are_those_of_single_texts(
    architecture: str, world: Path, tmp_path: Path
) -> None:
    tokenizer = models.load_tokenizer(world / "model")
    folder = sized(tmp_path, architecture, world / "model")
    told = [reward_model._pair(row, "here")[0] for row in pairs(range(12))]
    ids = [
        tuple(ids for ids, _ in chat.encode_examples(tokenizer, [(m, t) for m, t in texts]))
        for texts in told
    ]
    judged = [Judged(each, str(i)) for i, each in enumerate(ids)]
    plain = models.load_reward_model(folder, seed=3).eval()
    packed = ScoreModel(models.load_reward_model(folder, seed=3)).eval()
    found = torch.tensor(score_judged(packed, judged, 200, "cpu"))  # (12, 2)
    alone = torch.stack(
        [torch.stack([plain(torch.tensor([text])).logits[0, 0] for text in each]) for each in ids]
    )
    torch.testing.assert_close(found, alone.detach(), rtol=1e-4, atol=1e-6)
    loss = -F.logsigmoid(alone[:, 0] - alone[:, 1]).sum()  # TRL's, summed
    loss.backward()
    batches = pack_judged(judged, 200, "cpu")
    assert len(batches) > 2
    total = sum(packed(batch, pairwise) for batch in batches)
    assert isinstance(total, torch.Tensor)
    total.backward()
    torch.testing.assert_close(total, loss, rtol=1e-5, atol=1e-6)
    assert sum(batch.total_weight for batch in batches) == pytest.approx(12)
    theirs = dict(plain.named_parameters())
    for name, parameter in packed.model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-6)


def test_the_pairwise_loss_is_trls(world: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    plain = models.load_reward_model(world / "model", seed=3)
    tokenizer = models.load_tokenizer(world / "model")
    reward_model.set_padding(plain, tokenizer)
    rows = pairs(range(8))
    told = [reward_model._pair(row, "here")[0] for row in rows]
    encoded = [[ids for ids, _ in chat.encode_examples(tokenizer, texts)] for texts in told]
    columns = {"chosen_ids": [e[0] for e in encoded], "rejected_ids": [e[1] for e in encoded]}
    args = trl.RewardConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False)
    trainer = trl.RewardTrainer(
        plain, args, train_dataset=Dataset.from_dict(columns), processing_class=tokenizer
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    theirs = float(trainer.compute_loss(plain, batch).detach())
    ours = ScoreModel(models.load_reward_model(world / "model", seed=3))
    judged = [Judged(tuple(each), str(i)) for i, each in enumerate(encoded)]
    loss = sum(float(ours(b, pairwise).detach()) for b in pack_judged(judged, 300, "cpu")) / 8
    assert loss == pytest.approx(theirs, rel=1e-5)


def test_losses_of_scores() -> None:
    scores = torch.tensor([2.0, 0.5, -1.0, 3.0], dtype=torch.float64)
    tok = Tokens(torch.zeros(4), torch.ones(4), {"label": torch.tensor([1.0, 0, 0, 1]).double()})
    one, two = torch.log1p(torch.exp(torch.tensor([-1.5, 4.0], dtype=torch.float64)))
    torch.testing.assert_close(pairwise(scores, tok), torch.stack([one, one, two, two]))
    signed = torch.tensor([-2.0, 0.5, -1.0, -3.0], dtype=torch.float64)
    torch.testing.assert_close(pointwise(scores, tok), torch.log1p(signed.exp()))


def test_labelled_answers_are_read_whole(world: Path, tmp_path: Path) -> None:
    settings = config(
        world,
        labelled=str(world / "labelled.jsonl"),
        heldout_labelled=str(world / "heldout_labelled.jsonl"),
        num_epochs=4,
    )
    told = train(settings, tmp_path)
    assert told["reads"] == "whole"
    assert told["heldout"]["accuracy"]["value"] >= 0.95
    assert told["heldout"]["length_alone"]["value"] < 0.75
    rows = labelled(range(400, 440))
    found = scores(tmp_path / "model", rows, [row["messages"][1]["content"] for row in rows])
    signs = [score > 0 for score in found]
    assert sum(s == row["safe"] for s, row in zip(signs, rows, strict=True)) >= 36


def killed(settings: reward_model.Config, out: Path, at: str) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=train, args=(settings, out, at))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_kill_changes_no_bit(world: Path, tmp_path: Path) -> None:
    settings = config(world, num_epochs=0.5)
    whole = train(settings, tmp_path / "whole")
    killed(settings, tmp_path / "killed", "reward_model.step-9")
    assert train(settings, tmp_path / "killed") == whole
    curves = []
    for name in ("whole", "killed"):
        rows = store.read_jsonl(tmp_path / name / "metrics.jsonl")
        curves.append({row["step"]: row for row in rows})
    assert curves[0] == curves[1]
    hashes = [store.hash_tree(tmp_path / name / "model") for name in ("whole", "killed")]
    assert hashes[0] == hashes[1]


def test_what_is_too_long_is_left_out_and_counted(world: Path, tmp_path: Path) -> None:
    told = train(config(world, max_length=20, batch_size=64), tmp_path)
    accounts = told["accounts"]
    assert accounts["inputs"] == 400
    assert 0 < accounts["rejected"] < 400
    assert accounts["ok"] + accounts["rejected"] == 400
    with pytest.raises(UserError, match="holds nothing of at most 3 tokens"):
        train(config(world, max_length=3), tmp_path / "none")


def test_padding_never_ends_a_text(world: Path) -> None:
    tokenizer = models.load_tokenizer(world / "model")
    student = models.load_reward_model(world / "model", seed=0)
    end = chat.end_of_turn(tokenizer)
    tokenizer.pad_token_id = end
    tokenizer.unk_token = newborn.USER
    reward_model.set_padding(student, tokenizer)
    assert student.config.pad_token_id == tokenizer.pad_token_id != end


def test_length_alone_at_its_best() -> None:
    short_wins = [Judged(([1] * n, [1] * (n + m)), str(n)) for n, m in ((3, 1), (5, 2), (9, 4))]
    assert right_by_length(short_wins) == [1, 1, 1]
    tie = Judged(([1], [1]), "tie")
    assert sum(right_by_length([tie, tie])) == 1
    by_limit = [Judged(([1] * n,), str(n), label) for n, label in ((2, 0.0), (4, 1.0), (9, 1.0))]
    assert right_by_length(by_limit) == [1, 1, 1]


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ({"pairs": None, "heldout": None}, "give one of pairs and labelled"),
        ({"labelled": "x"}, "hold out rows of the same kind|give one of"),
        ({"num_tokens": 5}, "takes no num_tokens; drop it"),
        ({"heldout_labelled": "x"}, "hold out rows of the same kind"),
    ],
)
def test_mistakes_in_a_recipe(world: Path, told: dict[str, Any], match: str) -> None:
    both = {"pairs": "p", "heldout": "h", "model": "m"}
    with pytest.raises(ValidationError, match=match):
        reward_model.Config(**{**both, **told})


def test_rows_that_are_none(world: Path, tmp_path: Path) -> None:
    rows = pairs(range(3))
    del rows[2]["rejected"]
    write(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(UserError, match=r"pairs.jsonl: row 2: is no pair: it needs messages"):
        train(config(world, pairs=str(tmp_path / "pairs.jsonl")), tmp_path / "out")
    wrong = labelled(range(3))
    wrong[1]["safe"] = None
    write(tmp_path / "labelled.jsonl", wrong)
    with pytest.raises(UserError, match=r"row 1: is no labelled answer.*let safe be true or false"):
        train(config(world, labelled=str(tmp_path / "labelled.jsonl")), tmp_path / "out")
    tables.write_part(tmp_path / "none", tables.to_table("pairs", []))
    with pytest.raises(UserError, match="none: is empty; give a table with rows"):
        train(config(world, heldout=str(tmp_path / "none")), tmp_path / "out")
    with pytest.raises(UserError, match="400 of its 400 rows are trained on"):
        train(config(world, heldout=str(world / "pairs.jsonl")), tmp_path / "out")


def test_pairs_from_elsewhere_need_no_more_than_their_texts(world: Path, tmp_path: Path) -> None:
    assert outside.mistake("pairs", world / "pairs.jsonl") is None
    write(tmp_path / "pairs.jsonl", [{"messages": [], "chosen": "a"}])
    assert "has no 'rejected' in row 0" in (
        outside.mistake("pairs", tmp_path / "pairs.jsonl") or ""
    )


def test_a_language_model_is_no_reward(world: Path) -> None:
    with pytest.raises(UserError, match="is no reward model; name what stage reward_model made"):
        scores(world / "model", pairs(range(1)), ["so"])


def test_the_papers_numbers_are_the_defaults() -> None:
    settings = reward_model.Config(model="m", pairs="p")
    assert (settings.batch_size, settings.lr, settings.num_epochs) == (256, 6e-6, 1)
    assert (settings.max_length, settings.part) == (8192, "summary")
    assert reward_model.Config(model="m", labelled="l").part == "whole"
