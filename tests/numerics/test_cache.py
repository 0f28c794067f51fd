"""A teacher's distributions on disk against its own full softmax, and what reading refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from limbeck import models, newborn, store
from limbeck.errors import UserError
from limbeck.folder import Machine, StageFolder
from limbeck.stages import score
from limbeck.train import cache, distillation, divergences, teacher
from limbeck.train.batch import TokenBatch
from limbeck.train.examples import Lessons, pack_batches, read_lessons

torch.set_num_threads(1)

TEMPERATURES = [0.5, 1.0, 2.0, 4.0]
K = 12
# float16 keeps 11 bits: a log-probability is off by at most 2^-11 of itself.
ROUNDING = 2**-11
FLOAT32 = 2e-5  # of two forward passes in float32 and float64, as log-probabilities
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
PADDING = 7  # rows of the head that no token has


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp(request.param) / "model", request.param)


def make_teacher(folder: Path, architecture: str = "llama", seed: int = 0, words="sum") -> Path:
    texts = (f"What {words} is {a} + {b}? {a}+{b}={a + b}" for a in range(20) for b in range(20))
    tokenizer = newborn.train_tokenizer(texts, 300)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    rows = len(tokenizer) + PADDING
    model = newborn.create_model(architecture, rows, seed, **ends, **SIZES)
    models.save_model(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(17)))
    return path


def row(i: int, said: str = "") -> dict:
    answer = f"<think>{i}+{i}={2 * i}</think>" + said + "so " * (i % 5) + str(2 * i)
    turns = [{"role": "user", "content": f"What is {i} + {i}?"}]
    return {"id": f"row-{i}", "messages": [*turns, {"role": "assistant", "content": answer}]}


def make_cache(data: Path, teacher_folder: Path, place: Path, **settings) -> Path:
    """Scores in several batches and parts, whose sizes fit nothing."""
    place.mkdir(parents=True)
    settings = {"num_top": K, "temperatures": TEMPERATURES, "micro_batch_tokens": 100, **settings}
    config = score.Config(data=str(data), teacher=str(teacher_folder), **settings)
    out = StageFolder(place, "score", machine=Machine(device="cpu", threads=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score, "PART_TOKENS", 60)
        score.run(config, out)
    return place / "distributions"


def lessons_of(data: Path, teacher_folder: Path) -> Lessons:
    return read_lessons(str(data), models.load_tokenizer(teacher_folder), 64)


def opened(place: Path, teacher_folder: Path) -> cache.Cache:
    return cache.open_cache(place, models.load_tokenizer(teacher_folder))


@torch.no_grad()
def naive_logits(batch: TokenBatch, teacher_folder: Path) -> Tensor:
    """transformers' own logits (M, V) in float64, one document at a time."""
    model = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float64).eval()
    documents = batch.ids.split(batch.document_lengths)
    return torch.cat([model(ids[None]).logits[0] for ids in documents])[batch.loss_positions]


def batches_of(lessons: Lessons) -> list[TokenBatch]:
    return pack_batches(lessons.examples, 150, "cpu")


def test_top_k_and_tails_are_those_of_the_full_softmax(folder, data, tmp_path) -> None:
    place = make_cache(data, folder, tmp_path / "score")
    assert len(list(place.glob("part-*"))) > 2
    kept, lessons = opened(place, folder), lessons_of(data, folder)
    num_tokens = len(models.load_tokenizer(folder))
    for temperature in TEMPERATURES:
        kept.check(lessons, temperature, str(folder))
        for batch in batches_of(lessons):
            columns = {n: c[batch.loss_positions] for n, c in kept.columns(batch).items()}
            logits = naive_logits(batch, folder)  # (M, V)
            assert logits.shape[1] == num_tokens + PADDING
            exact = logits.log_softmax(-1)
            ids, logprobs = columns["top_ids"], columns["top_logprobs"].double()
            bound = exact.gather(1, ids).abs() * ROUNDING + FLOAT32
            assert ((logprobs - exact.gather(1, ids)).abs() <= bound).all()
            best = exact[:, :num_tokens].topk(K)
            assert torch.equal(ids, best.indices)
            hot = (logits / temperature).log_softmax(-1)
            tails = hot.scatter(1, ids, -torch.inf).logsumexp(1)
            torch.testing.assert_close(columns["tails"].double(), tails, rtol=0, atol=FLOAT32)
            # What a student learns at this temperature. Every log-probability is off by at most
            # 2^-11 of the largest of the k, divided by T; so is what normalises them.
            told = (logprobs / temperature).log_softmax(1)
            told += torch.log1p(-columns["tails"].double().exp())[:, None]
            bound = 2 * exact.gather(1, ids).abs().amax(1, keepdim=True) * ROUNDING / temperature
            assert ((told - hot.gather(1, ids)).abs() <= bound + 4 * FLOAT32).all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_cached_divergence_is_the_full_one_without_what_the_tail_hides(
    data, tmp_path, temperature: float
) -> None:
    """KL(p, q) = KL of the buckets + tail * KL within the tail, by the chain rule."""
    folder, other = (make_teacher(tmp_path / f"{seed}", seed=seed) for seed in (0, 1))
    lessons = lessons_of(data, folder)
    kept = opened(make_cache(data, folder, tmp_path / "score"), folder)
    kept.check(lessons, temperature)
    for batch in batches_of(lessons):
        tok = replace(batch, columns=kept.columns(batch)).loss_tokens()
        logits = naive_logits(batch, other)
        student, told = distillation.top_k()(logits.float(), tok, temperature)
        cached = divergences.forward_kl(student, told).double()
        p, q = ((x / temperature).log_softmax(-1) for x in (naive_logits(batch, folder), logits))
        top = tok.columns["top_ids"]
        p_rest, q_rest = (x.scatter(1, top, -torch.inf).log_softmax(-1) for x in (p, q))
        tail = 1 - p.gather(1, top).exp().sum(1)
        hidden = tail * (p_rest.exp() * (p_rest - q_rest).nan_to_num(0)).sum(1)
        full = (p.exp() * (p - q)).sum(1)
        assert (hidden > 0.01).any()
        largest = (p * temperature).gather(1, top).abs().amax(1)
        rounding = 2 * largest * ROUNDING / temperature * (1 + (p - q).abs().amax(1))
        assert ((cached + hidden - full).abs() <= rounding + 1e-4).all()


def test_bfloat16_tells_nearly_the_same(data, tmp_path) -> None:
    folder = make_teacher(tmp_path / "model")
    lessons = lessons_of(data, folder)
    kept = opened(make_cache(data, folder, tmp_path / "score", dtype="bfloat16"), folder)
    kept.check(lessons, 2.0)
    for batch in batches_of(lessons):
        columns = {n: c[batch.loss_positions] for n, c in kept.columns(batch).items()}
        exact = naive_logits(batch, folder).log_softmax(-1).gather(1, columns["top_ids"])
        errors = (columns["top_logprobs"].double() - exact).abs()
        assert errors.mean() < 0.05  # bfloat16 has 8 bits, and logits are about 5
        assert errors.max() > ROUNDING  # it is what computed


def test_a_row_reads_the_same_whatever_shares_its_batch(folder, data, tmp_path) -> None:
    kept = opened(make_cache(data, folder, tmp_path / "score"), folder)
    lessons = lessons_of(data, folder)
    alone = {}
    for example in lessons.examples:
        (batch,) = pack_batches([example], 64, "cpu")
        alone[example.name] = kept.columns(batch)
    for batch in batches_of(lessons):
        columns = kept.columns(batch)
        for name, column in columns.items():
            parts = column.split(batch.document_lengths)
            for document, part in zip(batch.document_names, parts, strict=True):
                assert torch.equal(part, alone[document][name])


def test_nothing_stands_where_nothing_is_learned(folder, data, tmp_path) -> None:
    kept = opened(make_cache(data, folder, tmp_path / "score"), folder)
    for batch in batches_of(lessons_of(data, folder)):
        read = torch.ones(batch.num_tokens, dtype=torch.bool)
        read[batch.loss_positions] = False
        assert read.any()
        assert not any(column[read].any() for column in kept.columns(batch).values())


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_shares_of_draws_are_unbiased(temperature: float) -> None:
    num_tokens, num_rows, num_draws = 40, 4000, 16
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(1, num_tokens + PADDING, generator=generator) * 3
    student = torch.randn(num_tokens, generator=generator).log_softmax(-1).double()
    chances = torch.rand(num_rows, num_draws, dtype=torch.float64, generator=generator)
    found = teacher.sample(logits.expand(num_rows, -1), chances, temperature, num_tokens)
    p = (logits[0, :num_tokens].double() / temperature).softmax(-1)
    drawn = torch.zeros(num_rows, num_tokens, dtype=torch.float64)
    drawn.scatter_add_(1, found["ids"], found["logprobs"].double().exp())
    torch.testing.assert_close(drawn.sum(1), torch.ones(num_rows).double(), rtol=1e-5, atol=0)
    error = (p * (1 - p) / (num_rows * num_draws)).sqrt()
    assert ((drawn.mean(0) - p).abs() < 5 * error + 1e-6).all()  # 5 sigma; 40 tokens
    torch.testing.assert_close(found["entropies"][0], -(p * p.log()).sum(), rtol=1e-5, atol=0)
    losses = -(drawn * student).sum(1) - found["entropies"]
    divergence = (p * (p.log() - student)).sum()
    assert abs(losses.mean() - divergence) < 5 * losses.std() / num_rows**0.5 + 1e-6


def test_top_k_alone_would_be_biased() -> None:
    """What the random draws are for: renormalised, the k are not the distribution."""
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(5))
    p = logits.softmax(-1)
    top = teacher.top_k(logits, 8, [1.0], 40)["logprobs"].softmax(-1)
    assert (top[0] - p[0].topk(8).values).min() > 0.01


def test_every_share_survives_float16() -> None:
    for num_draws in (1, 2, 64, 1000, 1024):
        counts = torch.arange(num_draws + 1)
        logprobs = (counts / num_draws).log()
        held = teacher.stored({"logprobs": logprobs})
        kept = cache.Cache(Path(), {"method": "sample", "k": num_draws}, {}, 1.0)
        expected = logprobs.clamp_min(teacher.NOTHING)
        assert torch.equal(kept._logprobs(held), expected)


def test_draws_are_kept_and_read(folder, data, tmp_path) -> None:
    settings = {"method": "sample", "num_draws": 32, "temperatures": [2.0]}
    place = make_cache(data, folder, tmp_path / "score", **settings)
    kept, lessons = opened(place, folder), lessons_of(data, folder)
    kept.check(lessons, 2.0)
    num, mean, variance = 0, torch.zeros(()), torch.zeros(())
    for batch in batches_of(lessons):
        columns = {n: c[batch.loss_positions] for n, c in kept.columns(batch).items()}
        assert set(columns) == {"top_ids", "top_logprobs", "entropies"}
        shares = columns["top_logprobs"].double().exp()
        torch.testing.assert_close(shares.sum(1), torch.ones(len(shares)).double())
        logits = naive_logits(batch, folder)[:, : len(models.load_tokenizer(folder))]
        logp = (logits / 2).log_softmax(-1)
        entropies = -(logp.exp() * logp).sum(1)
        torch.testing.assert_close(columns["entropies"].double(), entropies, rtol=0, atol=1e-4)
        # The mean of log p over draws is minus the entropy; so is its sum over all tokens.
        drawn = (shares * logp.gather(1, columns["top_ids"])).sum(1)
        spread = (logp.exp() * logp**2).sum(1) - entropies**2
        num += len(shares)
        mean, variance = mean + (drawn + entropies).sum(), variance + spread.sum() / 32
    assert num > 100
    assert mean.abs() < 5 * variance.sqrt()  # 5 sigma


def test_other_seeds_draw_otherwise_and_the_same_does_not(folder, data, tmp_path) -> None:
    settings = {"method": "sample", "temperatures": [1.0]}
    made = [make_cache(data, folder, tmp_path / f"{i}", seed=i // 2, **settings) for i in range(3)]
    trees = [store.hash_tree(place) for place in made]
    assert trees[0] == trees[1]
    assert trees[0].keys() != trees[2].keys()


# -- what reading refuses -----------------------------------------------------------------------


@pytest.fixture
def scored(data, tmp_path) -> tuple[Path, Path]:
    folder = make_teacher(tmp_path / "model")
    return folder, make_cache(data, folder, tmp_path / "score")


def refusal(act, *arguments) -> str:
    with pytest.raises(UserError) as raised:
        act(*arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_another_tokenizer(scored, tmp_path) -> None:
    _, place = scored
    other = make_teacher(tmp_path / "other", words="total")
    assert "another tokenizer" in refusal(opened, place, other)


def test_another_teacher(scored, data, tmp_path) -> None:
    folder, place = scored
    other = make_teacher(tmp_path / "other", seed=1)
    kept, lessons = opened(place, other), lessons_of(data, folder)
    kept.check(lessons, 1.0, str(folder))
    assert "another teacher" in refusal(kept.check, lessons, 1.0, str(other))


def test_a_temperature_that_was_not_kept(scored, data) -> None:
    folder, place = scored
    said = refusal(opened(place, folder).check, lessons_of(data, folder), 3.0)
    assert "no temperature 3, but 0.5, 1, 2, 4" in said


def test_rows_that_changed_or_are_missing(scored, data, tmp_path) -> None:
    folder, place = scored
    kept = opened(place, folder)
    lines = data.read_text().splitlines()
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join([*lines[:4], json.dumps(row(4, "Hm. ")), *lines[5:]]))
    said = refusal(kept.check, lessons_of(other, folder), 1.0)
    assert "row row-4 was scored as other tokens" in said
    other.write_text("\n".join([*lines, json.dumps(row(40))]))
    assert "lacks row row-40" in refusal(kept.check, lessons_of(other, folder), 1.0)
    (batch,) = pack_batches(lessons_of(other, folder).examples[-1:], 64, "cpu")
    assert "row row-40" in refusal(kept.columns, batch)


def test_another_template_is_other_tokens(scored, data, tmp_path) -> None:
    folder, place = scored
    tokenizer = models.load_tokenizer(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message.content", "' ' + message.content"
    )
    lessons = read_lessons(str(data), tokenizer, 64)
    said = refusal(cache.open_cache(place, tokenizer).check, lessons, 1.0)
    assert "the chat template changed" in said


@pytest.mark.parametrize("name", ["part-00001-*", "index.parquet", "distributions.json"])
def test_files_that_were_cut_changed_or_lost(scored, name) -> None:
    folder, place = scored
    (file,) = place.glob(name)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert file.name in refusal(opened, place, folder)
    file.write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
    assert file.name in refusal(opened, place, folder)
    file.unlink()
    assert file.name in refusal(opened, place, folder)


def test_numbers_that_are_not_finite(scored, data) -> None:
    """Whoever made such a file gave it its hash, too."""
    folder, place = scored
    part = min(place.glob("part-*"))
    tensors = {key: tensor.clone() for key, tensor in load_file(part).items()}
    tensors["logprobs"][3, 2] = torch.nan
    save_file(tensors, part)
    about = store.read_sealed(place / "distributions.json")
    about["files"][part.name] = store.hash_file(part)
    store.write_sealed(place / "distributions.json", about)
    kept, lessons = opened(place, folder), lessons_of(data, folder)
    (batch,) = pack_batches(lessons.examples[:2], 200, "cpu")
    said = refusal(kept.columns, batch)
    assert "logprobs are not finite in rows" in said
    assert "row-0" in said
