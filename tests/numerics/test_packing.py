"""Packed rows against each document alone through the plain Hugging Face model."""

import random

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from limbeck.errors import UserError
from limbeck.newborn import create_model
from limbeck.train import attention, layout
from limbeck.train.batch import Example, collate, pack
from limbeck.train.head import TokenModel
from limbeck.train.losses import cross_entropy

VOCAB = 61
LENGTHS = [7, 1, 19, 3, 12, 2, 20, 19]
SIZES = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,  # attention far from uniform, so that a wrong key would show
}
MODELS = [
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen2", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
    ("qwen3", {"tie_word_embeddings": True, "head_dim": 8}),
    ("llama", {"tie_word_embeddings": False, "num_key_value_heads": 1}),
    (
        "llama",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        },
    ),
]


def make_model(architecture: str = "qwen2", **sizes: object) -> PreTrainedModel:
    model = create_model(
        architecture, VOCAB, 3, eos_token_id=1, pad_token_id=0, **{**SIZES, **sizes}
    )
    with torch.no_grad():  # biases and norms are born constant; then their paths would not show
        generator = torch.Generator().manual_seed(5)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def make_examples(lengths: list[int] = LENGTHS, seed: int = 0) -> list[Example]:
    rng = random.Random(seed)
    examples = []
    for length in lengths:
        ids = [rng.randrange(2, VOCAB) for _ in range(length)]
        prompt = length // 3
        mask = [0] * prompt + [1] * (length - prompt)
        examples.append(Example(ids, mask, rng.choice([0.5, 1.0, 2.0])))
    return examples


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def reference(model: PreTrainedModel, examples: list[Example], implementation: str) -> Tensor:
    """Every document alone, its labels made by hand from the definition."""
    model.set_attn_implementation(implementation)
    total = torch.zeros(())
    for example in examples:
        logits = model(torch.tensor([example.ids])).logits[0].float()
        logp = logits.log_softmax(-1)
        for here in range(len(example.ids) - 1):
            if example.loss_mask[here + 1]:
                total = total - example.weight * logp[here, example.ids[here + 1]]
    return total


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        # float32 sums in another order: some 1e-6 of the largest entry
        torch.testing.assert_close(
            ours[name],
            expected,
            rtol=1e-4,
            atol=5e-6 * max(1.0, expected.abs().max().item()),
            msg=lambda text, name=name: f"{name}: {text}",
        )


LONGEST_FOR_PRODUCTS = {"products": 99, "sdpa": 0, "both": 12}


@pytest.mark.parametrize("kernel", LONGEST_FOR_PRODUCTS)
@pytest.mark.parametrize(("architecture", "sizes"), MODELS)
def test_packed_equals_each_document_alone(
    architecture: str, sizes: dict, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "LONGEST_FOR_PRODUCTS", LONGEST_FOR_PRODUCTS[kernel])
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", 5)
    examples = make_examples()
    model = make_model(architecture, **sizes)
    expected = reference(model, examples, "sdpa" if kernel == "products" else "eager")
    expected.backward()
    expected_gradients = gradients(model)
    model.zero_grad()
    loss = TokenModel(model)(collate(examples), cross_entropy)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)  # float32, some 1e-7 per token
    assert_same_gradients(gradients(model), expected_gradients)


@pytest.mark.parametrize("longest", [99, 0])
def test_attention_computes_what_autocast_asks_for(
    longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotary embeddings make queries and keys float32 again: attention must not stay with it."""
    monkeypatch.setattr(layout, "LONGEST_FOR_PRODUCTS", longest)
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", 8)
    model = TokenModel(make_model(initializer_range=0.1))
    batch = collate(make_examples())
    model(batch, cross_entropy).backward()
    expected = gradients(model.model)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        model(batch, cross_entropy).backward()
    whole = torch.cat([g.flatten() for g in expected.values()])
    found = torch.cat([g.flatten() for g in gradients(model.model).values()])
    assert 1e-4 < (found - whole).norm() / whole.norm() < 0.02  # 8 bits, through two layers


def test_dropout_of_attention_still_drops() -> None:
    model = TokenModel(make_model(attention_dropout=0.5)).train()
    batch = collate(make_examples())
    losses = {model(batch, cross_entropy).item() for _ in range(3)}
    assert len(losses) == 3
    model.eval()
    assert len({model(batch, cross_entropy).item() for _ in range(3)}) == 1


def test_gpt2_runs_packed() -> None:
    sizes = {
        "n_embd": 24,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 32,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "initializer_range": 0.2,
    }
    model = create_model("gpt2", VOCAB, 3, eos_token_id=1, pad_token_id=0, **sizes)
    examples = make_examples()
    expected = reference(model, examples, "eager")
    loss = TokenModel(model)(collate(examples), cross_entropy)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


def test_gradient_checkpointing_changes_nothing() -> None:
    batch = collate(make_examples())
    model = TokenModel(make_model()).train()
    model(batch, cross_entropy).backward()
    expected = gradients(model.model)
    model.zero_grad()
    model.model.gradient_checkpointing_enable()
    model(batch, cross_entropy).backward()
    for name, gradient in gradients(model.model).items():
        assert torch.equal(gradient, expected[name]), name


def test_loss_and_gradients_equal_transformers_own() -> None:
    model = make_model()
    ids = [5, 9, 2, 44, 17, 3]
    labels = torch.tensor([[-100, -100, 2, 44, 17, 3]])
    expected = model(torch.tensor([ids]), labels=labels).loss
    expected.backward()
    expected_gradients = gradients(model)
    model.zero_grad()
    batch = collate([Example(ids, [0, 0, 1, 1, 1, 1])])
    loss = TokenModel(model)(batch, cross_entropy) / batch.total_weight
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)  # float32, one sum of four
    assert_same_gradients(gradients(model), expected_gradients)


def test_a_document_does_not_see_its_neighbours() -> None:
    model = TokenModel(make_model()).eval()
    examples = make_examples()
    with torch.no_grad():
        before = model.hidden(collate(examples))
        changed = [*examples[:2], Example([7] * 19, [1] * 19), *examples[3:]]
        after = model.hidden(collate(changed))
    same = torch.ones(len(before), dtype=torch.bool)
    same[8:27] = False
    assert torch.equal(before[same], after[same])
    assert not torch.equal(before[~same], after[~same])


def test_sliding_window_is_refused_when_it_would_matter() -> None:
    window = {"use_sliding_window": True, "max_window_layers": 0}
    batch = collate(make_examples())
    model = TokenModel(make_model(sliding_window=20, **window))
    model(batch, cross_entropy)
    model = TokenModel(make_model(sliding_window=19, **window))
    with pytest.raises(UserError, match="sliding window of 19"):
        model(batch, cross_entropy)


def test_without_a_layout_it_refuses_to_run() -> None:
    model = TokenModel(make_model()).model
    with pytest.raises(AssertionError, match="TokenModel"):
        model(torch.tensor([[1, 2]]))


def test_collate() -> None:
    batch = collate(
        [Example([4, 5, 6], [0, 1, 1], 2.0), Example([7], [1]), Example([8, 9], [1, 1])]
    )
    assert batch.ids.tolist() == [4, 5, 6, 7, 8, 9]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 0, 1]
    assert batch.weights.tolist() == [2.0, 2.0, 0, 0, 1.0, 0]
    assert batch.loss_positions.tolist() == [0, 1, 4]
    assert batch.loss_tokens().targets.tolist() == [5, 6, 9]
    assert batch.document_lengths == (3, 1, 2)
    assert (batch.num_tokens, batch.num_loss_tokens, batch.num_prompt_tokens) == (6, 3, 3)
    assert batch.total_weight == 5.0


@pytest.mark.parametrize("longest", [99, 12, 0])
def test_layout_takes_rows_there_and_back(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "LONGEST_FOR_PRODUCTS", longest)
    found = layout.lay_out(LENGTHS)
    assert found.longest == max(LENGTHS)
    assert (found.short is None, found.long is None) == (longest == 0, longest == 99)
    tokens = 1 + torch.arange(sum(LENGTHS))[:, None]
    document = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    back = torch.zeros_like(tokens)
    for blocks in (found.short, found.long):
        if blocks is None:
            continue
        rows = blocks.queries.padded(tokens)
        assert len(rows) == sum(count * length for count, length in blocks.queries.shapes)
        back += blocks.queries.flat(rows)
        begin = 0
        for count, length in blocks.queries.shapes:
            for row in rows[begin : begin + count * length].view(count, length):
                seen = row[row > 0] - 1  # one whole document from its first token, then zeros
                assert len(set(document[seen].tolist())) == 1
                assert seen.tolist() == list(range(seen[0], seen[0] + LENGTHS[document[seen[0]]]))
                assert not row[len(seen) :].any()
            begin += count * length
    assert torch.equal(back, tokens)


def test_pack_fills_bins_and_cuts_nothing() -> None:
    assert pack([6, 4, 5, 5, 30, 1], 10) == [[4], [0, 1], [2, 3], [5]]
    assert pack([], 10) == []
    rng = random.Random(1)
    lengths = [rng.randint(1, 40) for _ in range(500)]
    bins = pack(lengths, 64)
    assert sorted(index for one in bins for index in one) == list(range(500))
    assert all(sum(lengths[index] for index in one) <= 64 for one in bins)
    assert len(bins) <= 1.02 * sum(lengths) / 64 + 1  # best fit wastes next to nothing here
    assert bins == pack(lengths, 64)
