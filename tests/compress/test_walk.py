"""What a walk tells of a model, against the whole model run text by text."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from limbeck.compress import anatomy
from limbeck.compress.walk import STRIP, Block, add_gram, mirror, walk
from limbeck.errors import UserError
from limbeck.newborn import create_model

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    | {"num_key_value_heads": 2},
    "qwen3": {"head_dim": 8, "num_key_value_heads": 2},
    "mistral": {"sliding_window": 4, "num_key_value_heads": 2},
    "gpt2": {},
    "phi3": {"num_key_value_heads": 4},
    "gemma3_text": {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 4},
}
LENGTHS = (5, 9, 9, 17, 3)


def make_model(family: str = "llama", **sizes: Any) -> PreTrainedModel:
    sizes = {**SIZES, "intermediate_size": 48, "max_position_embeddings": 64, **sizes}
    sizes |= {"initializer_range": 0.2, **FAMILIES[family]}
    return create_model(family, 50, 1, eos_token_id=1, pad_token_id=0, **sizes)


def make_texts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(2, 50, (n,), generator=draw).tolist() for n in LENGTHS]


def seen_by_each(model: PreTrainedModel, texts: list[list[int]]) -> dict[str, Tensor]:
    """By module: all that comes into it, (tokens, in), in double precision; each text alone."""
    seen = defaultdict(list)

    def remember(name: str) -> Any:
        def look(_: Any, args: tuple[Any, ...]) -> None:
            if args and args[0].is_floating_point():
                seen[name].append(args[0].flatten(0, -2).double())

        return look

    hooks = [
        module.register_forward_pre_hook(remember(name))
        for name, module in model.named_modules()
        if name
    ]
    for text in texts:
        with torch.no_grad():
            model.eval()(torch.tensor([text]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def close(ours: Tensor, theirs: Tensor, rtol: float = 1e-4) -> bool:
    return torch.allclose(ours.double(), theirs, rtol=rtol, atol=rtol * float(theirs.abs().max()))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("changes", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_stats_are_of_what_comes_in(family: str, changes: bool, attention: str) -> None:
    model, texts = make_model(family), make_texts()
    model.set_attn_implementation(attention)
    seen = seen_by_each(model, texts)
    names = []
    for block in walk(model, texts, device="cpu", gram=True, changes=changes, max_batch_tokens=40):
        names.append(block.name)
        assert block.stats.keys() == block.matrices.keys()
        for name, stats in block.stats.items():
            inputs = seen[f"{block.name}.{name}"]
            assert stats.num_tokens == len(inputs) == sum(LENGTHS), "padding is left out"
            assert close(stats.squares, inputs.square().sum(0))
            assert close(stats.magnitudes, inputs.abs().sum(0))
            assert stats.gram is not None and close(stats.gram, inputs.T @ inputs)
            assert torch.equal(stats.gram, stats.gram.T)
    assert names == anatomy.names(model) and len(names) == 3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_influence_is_how_far_a_block_turns_what_comes_in(family: str) -> None:
    model, texts = make_model(family), make_texts()
    seen = seen_by_each(model, texts)
    names = [*anatomy.names(model), "model.norm" if family == "llama" else "transformer.ln_f"]
    for index, block in enumerate(walk(model, texts, device="cpu", max_batch_tokens=30)):
        before, after = seen[names[index]], seen[names[index + 1]]
        expected = 1 - cosine_similarity(before, after, dim=-1).mean()
        assert block.influence == pytest.approx(float(expected), abs=1e-5)


def halve(block: Block) -> None:
    for matrix in block.matrices.values():
        anatomy.set_weight(matrix, anatomy.weight_of(matrix) / 2)


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_later_blocks_see_what_earlier_ones_have_become(family: str) -> None:
    model, texts = make_model(family), make_texts()
    found = []
    for block in walk(model, texts, device="cpu"):
        found.append((block.name, dict(block.stats)))
        halve(block)
    seen = seen_by_each(model, texts)
    for place, of_block in found:
        first = next(iter(of_block))  # the others depend on what the block was
        assert close(of_block[first].squares, seen[f"{place}.{first}"].square().sum(0))


def test_what_reads_the_same_shares_its_stats() -> None:
    block = next(walk(make_model(), make_texts(), device="cpu", gram=True))
    stats = {name.rpartition(".")[2]: found for name, found in block.stats.items()}
    assert stats["q_proj"] is stats["k_proj"] is stats["v_proj"]
    assert stats["gate_proj"] is stats["up_proj"]
    assert len({id(found) for found in stats.values()}) == 4


def test_grams_are_gone_when_the_loop_goes_on() -> None:
    model, texts = make_model(), make_texts()
    blocks = list(walk(model, texts, device="cpu", gram=True, changes=False))
    assert all(stats.gram is None for block in blocks for stats in block.stats.values())
    block = next(walk(model, texts, device="cpu"))
    assert all(stats.gram is None for stats in block.stats.values()), "nobody asked for them"


def test_the_model_is_whole_even_if_nobody_walks_on() -> None:
    model, texts = make_model(), make_texts()
    layers, before = list(anatomy.blocks(model)), model(torch.tensor([texts[0]])).logits
    assert next(walk(model, texts, device="cpu")).module is layers[0]
    assert list(anatomy.blocks(model)) == layers
    with pytest.raises(IndexError):
        next(walk(model, [[1, 2, 999]], device="cpu"))  # a token that it does not know
    assert list(anatomy.blocks(model)) == layers
    assert torch.equal(model(torch.tensor([texts[0]])).logits, before)


def test_stats_of_a_bfloat16_model_are_float32() -> None:
    model, texts = make_model().bfloat16(), make_texts()
    seen = seen_by_each(model, texts)
    for block in walk(model, texts, device="cpu", gram=True):
        for name, stats in block.stats.items():
            assert stats.squares.dtype == torch.float32 and stats.gram is not None
            inputs = seen[f"{block.name}.{name}"]
            assert close(stats.gram, inputs.T @ inputs, rtol=0.05)
            assert anatomy.weight_of(block.matrices[name]).dtype == torch.bfloat16


def test_without_texts_there_are_blocks_and_no_stats() -> None:
    blocks = list(walk(make_model(), [], device="cpu"))
    assert [block.index for block in blocks] == [0, 1, 2]
    assert all(block.matrices and not block.stats for block in blocks)


@pytest.mark.parametrize("width", [7, STRIP, STRIP + 1, 2 * STRIP + 70])
def test_a_gram_in_strips_is_the_whole(width: int) -> None:
    inputs, gram = torch.randn(20, width), torch.zeros(width, width)
    add_gram(gram, inputs[:9])
    add_gram(gram, inputs[9:])
    mirror(gram)
    assert torch.allclose(gram, inputs.T @ inputs, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_a_weight_is_out_by_in_and_can_be_set(family: str) -> None:
    block = anatomy.blocks(make_model(family))[0]
    for matrix in anatomy.matrices(block).values():
        weight = anatomy.weight_of(matrix).clone()
        inputs = torch.randn(3, weight.shape[1])
        bias = matrix.bias if matrix.bias is not None else 0
        assert torch.allclose(matrix(inputs), inputs @ weight.T + bias, atol=1e-5)
        anatomy.set_weight(matrix, 2 * weight)
        assert torch.allclose(matrix(inputs), inputs @ (2 * weight.T) + bias, atol=1e-5)


def strange(kind: str) -> PreTrainedModel:
    if kind == "encoder-decoder":
        small = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8, "d_ff": 16}
        config = AutoConfig.for_model("t5", vocab_size=20, **small)
        return AutoModelForSeq2SeqLM.from_config(config)
    if kind == "mixture of experts":
        small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        small |= {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **small))
    if kind == "unknown kind":
        small = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
        small |= {"state_size": 4, "vocab_size": 20}
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **small))
    model = make_model()
    if kind == "share weights":
        model.model.layers[1] = model.model.layers[0]
    if kind == "quantized already":
        weight = model.model.layers[0].mlp.up_proj
        weight.weight = torch.nn.Parameter(weight.weight.to(torch.int8), requires_grad=False)
    return model


@pytest.mark.parametrize(
    "kind",
    [
        "encoder-decoder",
        "mixture of experts",
        "share weights",
        "quantized already",
        "unknown kind",
    ],
)
def test_what_is_no_plain_decoder_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match=f"{kind}.*; take a plain decoder") as told:
        anatomy.blocks(strange(kind))
    assert "\n" not in str(told.value)


def test_a_model_that_overflows_on_its_texts_is_refused() -> None:
    model = make_model().to(torch.float16)
    anatomy.set_weight(model.model.layers[0].mlp.up_proj, torch.full((48, 32), 6e4))
    told = "model.layers.0.mlp.down_proj: what comes into it is not finite; .* a wider dtype"
    with pytest.raises(UserError, match=told):
        list(walk(model, make_texts(), device="cpu"))


def test_blocks_may_give_several_values() -> None:
    """Of BLOOM's the first is the hidden states."""
    sizes = {**SIZES, "num_hidden_layers": 4, "initializer_range": 0.2}
    model = create_model("bloom", 50, 1, eos_token_id=1, pad_token_id=0, **sizes).eval()
    name, wanted = "self_attention.query_key_value", torch.zeros(32)

    def look_at(_: Any, args: tuple[Tensor]) -> None:
        wanted.add_(args[0].flatten(0, 1).square().sum(0))

    look = model.transformer.h[3].get_submodule(name).register_forward_pre_hook(look_at)
    with torch.no_grad(), look:
        for text in make_texts():
            model(torch.tensor([text]))
    found = [block.stats[name].squares for block in walk(model, make_texts(), device="cpu")]
    assert torch.allclose(found[3], wanted, rtol=1e-4)
