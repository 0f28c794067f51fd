"""Outputs that share their prompt against each of them behind a prompt of its own."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck import processes, sharding
from limbeck.newborn import create_model
from limbeck.train import adapters, attention, layout
from limbeck.train.batch import Example, Group, Output, TokenBatch, Tokens, pack_groups
from limbeck.train.config import LoraConfig
from limbeck.train.head import TokenModel
from limbeck.train.losses import cross_entropy
from limbeck.train.step import make_optimizer, train_step
from tests.numerics.test_packing import (
    MODELS,
    SIZES,
    VOCAB,
    assert_same_gradients,
    gradients,
    make_model,
    reference,
)
from tests.numerics.test_sharding import Lesson, in_two, make_student, whole

# (prompt, outputs) of each group: ragged ones, a prompt of one token, a group of one output, an
# output of one token, one of none (which an engine may write), and prompts of nearly one length.
LENGTHS = [
    (7, [5, 12, 3, 1]),
    (1, [4, 6]),
    (9, [8]),
    (21, [2, 17, 0, 9, 11]),
    (6, [5, 5]),
    (20, [3, 2]),
]
# Up to which length products serve: all; half of the prompts' and of the outputs' lengths.
LONGEST_FOR_PRODUCTS = [99, 15]


def make_groups(lengths: list[tuple[int, list[int]]] = LENGTHS, seed: int = 0) -> list[Group]:
    rng = random.Random(seed)

    def words(num: int) -> list[int]:
        return [rng.randrange(2, VOCAB) for _ in range(num)]

    groups = []
    for prompt, outputs in lengths:
        group = Group(words(prompt), [])
        for num in outputs:
            columns = {"advantages": rng.gauss(0, 1), "old_logp": [rng.gauss(-4, 1)] * num}
            name = f"{len(groups)}.{len(group.outputs)}"
            group.outputs.append(Output(words(num), rng.choice([0.5, 1.0]), name, columns))
        groups.append(group)
    return groups


def loss_of(model: nn.Module, batches: list[TokenBatch], loss: Callable = cross_entropy) -> Tensor:
    return sum((model(batch, loss) for batch in batches), torch.zeros(()))


def of_advantages(logits: Tensor, tok: Tokens) -> Tensor:
    """A policy loss in little: it needs to know which token stands where."""
    logp = logits.log_softmax(-1).gather(1, tok.targets[:, None])[:, 0]
    ratio = (logp - tok.columns["old_logp"]).exp()
    return -ratio * tok.columns["advantages"]


def make_gpt2() -> nn.Module:
    sizes = {
        k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "intermediate_size")
    }
    return create_model("gpt2", VOCAB, 3, eos_token_id=1, pad_token_id=0, **sizes)


def is_shared(batches: list[TokenBatch]) -> bool:
    return any("prompt" in name for batch in batches for name in batch.document_names)


@pytest.mark.parametrize("longest", LONGEST_FOR_PRODUCTS)
@pytest.mark.parametrize("max_tokens", [1000, 60, 20])
@pytest.mark.parametrize(("architecture", "sizes"), [*MODELS, ("gpt2", {})])
def test_equals_each_output_alone(
    architecture: str, sizes: dict, max_tokens: int, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By transformers' own attention: no packing, no sharing, labels made from the definition."""
    monkeypatch.setattr(layout, "LONGEST_FOR_PRODUCTS", longest)
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", 5)
    groups = make_groups()
    model = make_gpt2() if architecture == "gpt2" else make_model(architecture, **sizes)
    examples = [
        Example(g.prompt + o.ids, [0] * len(g.prompt) + [1] * len(o.ids), o.weight)
        for g in groups
        for o in g.outputs
    ]
    expected = reference(model, examples, "eager")
    expected.backward()
    expected_gradients = gradients(model)
    model.zero_grad()
    batches = pack_groups(groups, max_tokens)
    assert is_shared(batches)
    loss = loss_of(TokenModel(model), batches)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)  # float32, some 1e-7 per token
    assert_same_gradients(gradients(model), expected_gradients)


@pytest.mark.parametrize("kind", ["plain", "recomputed", "adapted"])
def test_equals_the_plain_way(kind: str) -> None:
    groups = make_groups()
    plain = make_model(initializer_range=0.1)
    if kind == "adapted":
        adapters.attach(plain, LoraConfig(rank=4), seed=7)
        for name, parameter in plain.named_parameters():  # B is born zero
            if "lora" in name:
                nn.init.normal_(parameter, std=0.1)
    model = TokenModel(plain).train()
    expected = loss_of(model, pack_groups(groups, 1000, shares_prompts=False), of_advantages)
    expected.backward()
    expected_gradients = gradients(plain)
    assert expected_gradients
    model.zero_grad()
    if kind == "recomputed":
        plain.gradient_checkpointing_enable()
    batches = pack_groups(groups, 1000)
    assert is_shared(batches)
    loss = loss_of(model, batches, of_advantages)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)  # float32, some 1e-7 per token
    assert_same_gradients(gradients(plain), expected_gradients)


def test_logprobs_and_entropies_come_in_the_same_order() -> None:
    model = TokenModel(make_model()).eval()
    groups = make_groups()
    (shared,), (plain,) = pack_groups(groups, 1000), pack_groups(groups, 1000, "cpu", False)
    assert shared.num_tokens < plain.num_tokens
    with torch.no_grad():
        for found, expected in zip(model(shared, None), model(plain, None), strict=True):
            # float32 sums in another order, through two layers
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_it_is_as_near_as_the_plain_way() -> None:
    groups = make_groups()
    model = TokenModel(make_model(initializer_range=0.1))
    loss_of(model, pack_groups(groups, 1000, shares_prompts=False)).backward()
    whole = torch.cat([g.flatten() for g in gradients(model.model).values()])
    off = {}
    for shares_prompts in (False, True):
        model.zero_grad()
        batches = pack_groups(groups, 1000, shares_prompts=shares_prompts)
        with torch.autocast("cpu", torch.bfloat16):
            loss_of(model, batches).backward()
        found = torch.cat([g.flatten() for g in gradients(model.model).values()])
        off[shares_prompts] = float((found - whole).norm() / whole.norm())
    assert 1e-4 < off[True] < 0.02  # 8 bits, through two layers
    assert off[True] < 1.3 * off[False]


def test_a_group_sees_its_own_prompt_alone() -> None:
    model = TokenModel(make_model()).eval()
    groups = make_groups()
    (before,) = pack_groups(groups, 1000)
    changed = [*groups[:3], Group([5] * 21, groups[3].outputs), *groups[4:]]
    (after,) = pack_groups(changed, 1000)
    with torch.no_grad():
        is_same = (model.hidden(before) == model.hidden(after)).all(1)
    owner = [name.split(".")[0] for name in before.document_names]
    document = torch.arange(len(owner)).repeat_interleave(torch.tensor(before.document_lengths))
    for index, name in enumerate(owner):
        assert is_same[document == index].any() == (name != "3"), before.document_names[index]


def test_dropout_of_attention_sees_the_same_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """What drops takes torch's kernel: a rate so small that nothing falls must change nothing."""
    (batch,) = pack_groups(make_groups(), 1000)
    plain = make_model()
    model = TokenModel(plain).train()
    expected = model(batch, cross_entropy)
    expected.backward()
    expected_gradients = gradients(plain)
    model.zero_grad()
    for module in plain.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 1e-12
    loss = model(batch, cross_entropy)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert_same_gradients(gradients(plain), expected_gradients)
    for module in plain.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    assert len({model(batch, cross_entropy).item() for _ in range(3)}) == 3


def train_shared(out: Path, shares_prompts: bool) -> None:
    """Three steps; tells of each step and of the weights that came of them."""
    model = make_student(Lesson("llama tied"))
    sharding.shard(model)
    optimizer = make_optimizer(model, lr=0.01)
    told = []
    for step, max_tokens in enumerate((1000, 60, 30)):
        batches = pack_groups(make_groups(seed=step), max_tokens, "cpu", shares_prompts)
        result = train_step(
            model,
            batches,
            optimizer,
            lr=0.01,
            clip=0.5,
            token_loss=of_advantages,
            total_weight=19.0,
        )
        told.append((result.loss, result.grad_norm))
    weights = whole(model, optimizer)
    if processes.leads():
        save_file(weights, out.with_suffix(".safetensors"))
        out.write_text(json.dumps(told))


def test_two_processes_train_what_the_plain_way_does_alone(tmp_path: Path) -> None:
    train_shared(tmp_path / "one", shares_prompts=False)
    assert in_two(train_shared, tmp_path / "two", True) == [0, 0]
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one", "two"))
    for expected, found in zip(one, two, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)  # float32 through three of Adam's steps
    expected, found = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    for name, tensor in expected.items():
        # Adam's quotient enlarges the error where gradients are tiny
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_a_batch() -> None:
    group = Group(
        [4, 5, 6],
        [
            Output([7, 8], 0.5, "a", {"advantages": 1.0, "old_logp": [-1.0, -2.0]}),
            Output([9], 1.0, "b", {"advantages": -1.0, "old_logp": [-3.0]}),
        ],
    )
    alone = Group([3, 2], [Output([4], 2.0, "c", {"advantages": 0.0, "old_logp": [-4.0]})])
    (batch,) = pack_groups([group, alone], 100)
    assert batch.document_names == ("a", "b", "c", "a, prompt")
    assert batch.ids.tolist() == [6, 7, 8, 6, 9, 3, 2, 4, 4, 5]
    assert batch.position_ids.tolist() == [2, 3, 4, 2, 3, 0, 1, 2, 0, 1]
    assert batch.weights.tolist() == [0.5, 0.5, 0, 1.0, 0, 0, 2.0, 0, 0, 0]
    tok = batch.loss_tokens()
    assert tok.targets.tolist() == [7, 8, 9, 4]
    assert tok.columns["output"].tolist() == [0, 0, 1, 2]
    assert tok.columns["advantages"].tolist() == [1.0, 1.0, -1.0, 0.0]
    assert tok.columns["old_logp"].tolist() == [-1.0, -2.0, -3.0, -4.0]
    (plain,) = pack_groups([group, alone], 100, shares_prompts=False)
    assert plain.document_names == ("a", "b", "c")
    assert plain.ids.tolist() == [4, 5, 6, 7, 8, 4, 5, 6, 9, 3, 2, 4]
    for name, column in plain.loss_tokens().columns.items():
        assert torch.equal(column, tok.columns[name]), name


@pytest.mark.parametrize("max_tokens", [40, 25, 10])
def test_batches_are_filled_and_no_output_is_lost(max_tokens: int) -> None:
    groups = make_groups()
    batches = pack_groups(groups, max_tokens)
    names = [name for batch in batches for name in batch.document_names if "prompt" not in name]
    assert sorted(names) == sorted(output.name for group in groups for output in group.outputs)
    for batch in batches:
        num_outputs = sum("prompt" not in name for name in batch.document_names)
        assert batch.num_tokens <= max_tokens or num_outputs == 1


def test_where_products_would_keep_too_much_prompts_are_not_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups = make_groups([(30, [10, 10])])  # branches of 11 tokens see up to 40
    monkeypatch.setattr(layout, "LONGEST_FOR_PRODUCTS", 21)  # 441 probabilities
    assert is_shared(pack_groups(groups, 1000))
    monkeypatch.setattr(layout, "LONGEST_FOR_PRODUCTS", 20)
    assert not is_shared(pack_groups(groups, 1000))
    assert not is_shared(pack_groups(groups, 1000, "meta"))
