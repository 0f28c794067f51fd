"""A narrower model is the whole one with the same heads, neurons and channels masked out."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from limbeck import models, newborn
from limbeck.compress import anatomy
from limbeck.compress.prune import width
from limbeck.compress.prune.budget import smaller_sizes
from limbeck.compress.prune.shapes import FAMILIES, Shape, Sizes, shape_of
from limbeck.compress.walk import walk
from limbeck.engines.local_engine import LocalEngine
from limbeck.errors import UserError

torch.set_num_threads(1)

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 0.1,  # large enough to be seen when it is wrong
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
GPT2 = {name: size for name, size in SIZES.items() if name != "rms_norm_eps"}
# name: (architecture, its sizes)
MODELS = {
    "llama": ("llama", GROUPED),
    "biased": ("llama", {**GROUPED, "attention_bias": True, "mlp_bias": True}),
    "a key for each head": ("llama", {**SIZES, "num_key_value_heads": 4, "head_dim": 16}),
    "tied": ("llama", {**GROUPED, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", GROUPED),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 16, "rms_norm_eps": 1e-6}),
    "mistral": ("mistral", {**GROUPED, "sliding_window": 5}),
    "gpt2": ("gpt2", {**GPT2, "layer_norm_epsilon": 0.1}),
}
HEADS = {"heads": True, "neurons": False}
NEURONS = {"heads": False, "neurons": True}
ALL = {"heads": True, "neurons": True, "channels": True}
TEXTS = [[(7 * i + 3 * j * j) % 50 for j in range(length)] for i, length in enumerate((9, 14, 6))]
# Sums in another order: logits of a few units agree to some 20 roundings of float32.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def tiny(name):
    """A model whose every weight is drawn, biases and norms, too: what is cut wrongly is seen."""
    architecture, sizes = MODELS[name]
    model = newborn.create_model(architecture, 300, 0, eos_token_id=1, pad_token_id=0, **sizes)
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        drawn = torch.randn(weight.shape, generator=generator) * 0.25
        weight.data = 1 + drawn if weight.ndim == 1 and weight.data.mean() == 1 else drawn
    return model.eval()


def walked(model):
    return list(walk(model, TEXTS, device="cpu", changes=False))


def logits(model):
    with torch.no_grad():
        return [model(torch.tensor([text])).logits[0] for text in TEXTS]


def naive_inputs(model):
    """By name what came into each module, (tokens, in), one text at a time."""
    seen = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda module, inputs, name=name: seen.setdefault(name, []).append(inputs[0][0])
        )
        for name, module in model.named_modules()
        if module
        in [m for block in anatomy.blocks(model) for m in anatomy.matrices(block).values()]
    ]
    logits(model)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def naive_scores(model):
    """(of each block its key heads, of each block its neurons, the channels), by hooks."""
    inputs, shape = naive_inputs(model), shape_of(model)
    names, family = anatomy.names(model), shape.family
    heads, neurons, channels = [], [], 0
    for name in names:
        said = inputs[f"{name}.{family.heads}"].view(
            -1, shape.sizes.keys, shape.sizes.sharing, shape.sizes.width
        )
        heads.append(said.pow(2).sum((0, 2, 3)).sqrt())
        neurons.append(inputs[f"{name}.{family.neurons}"].norm(dim=0))
        channels = channels + sum(inputs[f"{name}.{part}"].norm(dim=0) for part in family.channels)
    return heads, neurons, channels


def gone(scores, num_kept):
    return scores.argsort()[: len(scores) - num_kept].tolist()


def mask(model, small):
    """Zeros in the whole model where the small one lacks something; its heads' and neurons' outputs
    are what o_proj and down_proj read, its channels what everything writes."""
    heads, neurons, channels = naive_scores(model)
    sizes, left = shape_of(model).sizes, shape_of(small).sizes
    family, per_group = FAMILIES[model.config.model_type], sizes.sharing * sizes.width
    dead = gone(channels, left.channels)
    with torch.no_grad():
        for block, of_heads, of_neurons in zip(anatomy.blocks(model), heads, neurons, strict=True):
            matrices = anatomy.matrices(block)
            out, down = (anatomy.weight_of(matrices[n]) for n in (family.heads, family.neurons))
            for group in gone(of_heads, left.keys):
                out[:, group * per_group : (group + 1) * per_group] = 0
            down[:, gone(of_neurons, left.neurons)] = 0
            for matrix in (matrices[family.heads], matrices[family.neurons]):
                anatomy.weight_of(matrix)[dead] = 0
                if matrix.bias is not None:
                    matrix.bias[dead] = 0
        for name, weight in model.named_parameters():
            if "embed_tokens" in name or "wte" in name or "wpe" in name:
                weight[:, dead] = 0
            if "ln_" in name:
                weight[dead] = 0
    if model.config.model_type == "gpt2" and dead:
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.register_forward_pre_hook(lambda _, inputs: at_the_mean(inputs[0], dead))
    return model


def at_the_mean(hidden, dead):
    """Channels that do not move a LayerNorm: at the mean of the others."""
    kept = [i for i in range(hidden.shape[-1]) if i not in dead]
    hidden = hidden.clone()
    hidden[..., dead] = hidden[..., kept].mean(-1, keepdim=True)
    return hidden


def pruned(name, axes, sparsity):
    model = tiny(name)
    return width.prune_model(model, walked(model), sparsity, multiple=1, **axes)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("axes", "sparsity"),
    [(HEADS, 0.19), (NEURONS, 0.3), (ALL, 0.65)],
    ids=["heads", "neurons", "all"],
)
def test_equals_the_whole_model_with_the_same_units_masked(name, axes, sparsity):
    if name in ("qwen2", "gpt2") and axes == HEADS:
        with pytest.raises(UserError, match=r"at most 0\.000 can go"):
            pruned(name, axes, sparsity)
        return
    small = pruned(name, axes, sparsity)
    whole, left = shape_of(tiny(name)).sizes, shape_of(small).sizes
    assert (left.keys < whole.keys) == axes["heads"]
    assert (left.neurons < whole.neurons) == axes["neurons"]
    assert (left.channels < whole.channels) == (axes == ALL)
    for ours, theirs in zip(logits(small), logits(mask(tiny(name), small)), strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_scores_agree_with_hooks(name):
    model = tiny(name)
    heads, neurons, channels = naive_scores(model)
    shape, stats = shape_of(model), [block.stats for block in walked(model)]
    for of_block, of_heads, of_neurons in zip(stats, heads, neurons, strict=True):
        torch.testing.assert_close(width.head_scores(of_block, shape), of_heads)
        torch.testing.assert_close(width.neuron_scores(of_block, shape), of_neurons)
    torch.testing.assert_close(width.channel_scores(stats, shape), channels)


@pytest.mark.parametrize("name", MODELS)
def test_others_load_what_is_saved(name, tmp_path):
    small = pruned(name, ALL, 0.65)
    tokenizer = newborn.train_tokenizer(iter(["1 plus 2"]), 300)
    models.save_model(small, tokenizer, tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert sum(p.numel() for p in plain.parameters()) == models.num_parameters(small)
    tied = plain.lm_head.weight is plain.get_input_embeddings().weight
    assert tied == plain.config.tie_word_embeddings == tiny(name).config.tie_word_embeddings
    for ours, theirs in zip(logits(small), logits(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    if name == "mistral":  # which the engine leaves to transformers
        return
    engine = LocalEngine(models.load_model(tmp_path / "model"), tokenizer, name="x", compiled=False)
    for scored, theirs, text in zip(engine.score(TEXTS), logits(plain), TEXTS, strict=True):
        told = theirs.log_softmax(-1)[range(len(text) - 1), text[1:]]
        torch.testing.assert_close(torch.tensor(scored.logprobs[1:]), told, **TOLERANCE)


def test_the_whole_model_stays_as_it_was():
    model = tiny("llama")
    before = logits(model)
    width.prune_model(model, walked(model), 0.4, channels=True, multiple=1)
    assert all(torch.equal(a, b) for a, b in zip(before, logits(model), strict=True))


# -- the sizes ----------------------------------------------------------------------------------


def shape_like(kind, keys, sharing, head, neurons, channels):
    """Qwen2.5-7B's, for instance, without its weights."""
    sizes = Sizes(keys, sharing, head, neurons, channels)
    family = FAMILIES[kind]
    block = {
        name: tuple(sizes.along(axis) for axis in axes if axis)
        for name, axes in family.weights.items()
        if not name.endswith(".bias") and None not in axes
    }
    return Shape(kind, sizes, family.weights, block)


LARGE = {
    "llama": shape_like("llama", 8, 4, 128, 14336, 4096),
    "qwen2": shape_like("qwen2", 4, 7, 128, 18944, 3584),
    "qwen3": shape_like("qwen3", 8, 4, 128, 12288, 4096),
    "gpt2": shape_like("gpt2", 12, 1, 64, 3072, 768),
}


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("sparsity", [0.2, 0.35, 0.5, 0.7])
@pytest.mark.parametrize("axes", [("keys", "neurons"), ("keys", "neurons", "channels")])
def test_the_share_is_met_by_sizes_that_fit(kind, sparsity, axes):
    shape = LARGE[kind]
    if sparsity == 0.7 and kind == "gpt2" and len(axes) == 2:
        pytest.skip("two thirds of it are neurons")
    steps = {"keys": 1, "neurons": 32, "channels": 32}
    small = smaller_sizes(shape, sparsity, {axis: steps[axis] for axis in axes})
    assert shape.fits(small) and small.neurons % 32 == small.channels % 32 == 0
    assert shape.share_gone(small) == pytest.approx(sparsity, abs=0.005)


def test_axes_shrink_alike_where_units_are_fine():
    shape = LARGE["qwen3"]
    small = smaller_sizes(shape, 0.5, {"keys": 1, "neurons": 32, "channels": 32})
    kept = [small.keys / 8, small.neurons / 12288, small.channels / 4096]
    assert max(kept) - min(kept) < 0.13  # a key head is an eighth


def test_neurons_stay_multiples_of_what_divides_them():
    model = tiny("qwen3")
    small = width.prune_model(model, walked(model), 0.3)
    assert small.config.intermediate_size % 16 == 0


def test_gone_as_told():
    model = tiny("qwen3")
    small = width.prune_model(model, walked(model), 0.3, multiple=1)
    num = [sum(p.numel() for p in anatomy.blocks(m).parameters()) for m in (small, model)]
    assert num[0] / num[1] == pytest.approx(0.7, abs=0.01)
    assert shape_of(model).share_gone(shape_of(small).sizes) == pytest.approx(1 - num[0] / num[1])


# -- what is refused ----------------------------------------------------------------------------


def test_an_architecture_with_fused_weights_is_refused_in_one_line():
    sizes = {name: size for name, size in GROUPED.items() if name != "rms_norm_eps"}
    model = newborn.create_model("phi3", 50, 0, eos_token_id=1, pad_token_id=0, **sizes)
    with pytest.raises(UserError, match="phi3 is no architecture that width can prune") as refused:
        width.prune_model(model, walked(model), 0.3)
    assert "\n" not in str(refused.value)


def test_a_weight_of_an_unknown_name_is_refused():
    model = tiny("llama")
    model.model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"width does not know its model\.extra"):
        width.prune_model(model, walked(model), 0.3)


@pytest.mark.parametrize(
    ("sparsity", "axes", "says"),
    [
        (0.9, {"neurons": False}, "can go in this way"),
        (0.5, {"neurons": False, "heads": False}, "at most 0.000 can go"),
        (0.001, {}, "is no whole unit"),
    ],
)
def test_a_share_that_cannot_be_met_is_refused(sparsity, axes, says):
    with pytest.raises(UserError, match=says) as refused:
        pruned("llama", axes, sparsity)
    assert "\n" not in str(refused.value)
