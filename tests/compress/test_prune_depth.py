"""A shallower model is the whole one that skips the same layers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from limbeck import models, newborn
from limbeck.compress import anatomy
from limbeck.compress.prune import depth
from limbeck.compress.walk import walk
from limbeck.engines.local_engine import LocalEngine
from limbeck.errors import UserError

torch.set_num_threads(1)

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
WINDOWS = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
# name: (architecture, its sizes)
MODELS = {
    "llama": ("llama", GROUPED),
    "tied": ("llama", {**GROUPED, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", GROUPED),
    "windows from layer 2 on": ("qwen2", {**GROUPED, **WINDOWS}),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 16}),
    "mistral": ("mistral", {**GROUPED, "sliding_window": 5}),
    "phi3, fused": ("phi3", GROUPED),
    "gpt2": ("gpt2", SIZES),
    "gpt2, scaled by depth": ("gpt2", {**SIZES, "scale_attn_by_inverse_layer_idx": True}),
}
TEXTS = [[(7 * i + 3 * j * j) % 50 for j in range(length)] for i, length in enumerate((9, 14, 6))]


def tiny(name):
    """A model with layers of very different influence: the second and the fourth do little."""
    architecture, sizes = MODELS[name]
    model = newborn.create_model(architecture, 300, 0, eos_token_id=1, pad_token_id=0, **sizes)
    generator = torch.Generator().manual_seed(1)
    for block, scale in zip(anatomy.blocks(model), (0.3, 0.02, 0.2, 0.05, 0.25), strict=True):
        for weight in block.parameters():
            if weight.ndim == 2:
                weight.data = torch.randn(weight.shape, generator=generator) * scale
    return model.eval()


def walked(model):
    return list(walk(model, TEXTS, device="cpu", changes=False))


def pruned(name, sparsity, **knobs):
    model = tiny(name)
    return depth.prune_model(model, walked(model), sparsity, **knobs)


def logits(model):
    with torch.no_grad():
        return [model(torch.tensor([text])).logits[0] for text in TEXTS]


def skipping(model, gone):
    """The whole model, of which some layers give back what came in."""
    for index in gone:
        anatomy.blocks(model)[index].register_forward_hook(
            lambda _, inputs, output: (
                (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]
            )
        )
    return model


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_whole_model_that_skips_the_same_layers(name):
    small = pruned(name, 0.4)
    assert len(anatomy.blocks(small)) == small.config.num_hidden_layers == 3
    for ours, theirs in zip(logits(small), logits(skipping(tiny(name), (1, 3))), strict=True):
        # The same sums in the same order, but for GPT-2's queries that make up for their place.
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_others_load_what_is_saved(name, tmp_path):
    small = pruned(name, 0.4)
    tokenizer = newborn.train_tokenizer(iter(["1 plus 2"]), 300)
    models.save_model(small, tokenizer, tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert sum(p.numel() for p in plain.parameters()) == models.num_parameters(small)
    for ours, theirs in zip(logits(small), logits(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    if name in ("mistral", "phi3, fused"):  # which the engine leaves to transformers
        return
    engine = LocalEngine(models.load_model(tmp_path / "model"), tokenizer, name="x", compiled=False)
    for scored, theirs, text in zip(engine.score(TEXTS), logits(plain), TEXTS, strict=True):
        told = theirs.log_softmax(-1)[range(len(text) - 1), text[1:]]
        torch.testing.assert_close(torch.tensor(scored.logprobs[1:]), told, rtol=1e-4, atol=1e-4)


def test_windows_go_along_with_their_layers():
    config = pruned("windows from layer 2 on", 0.4).config  # layers 0, 2 and 4 stay
    assert config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert config.max_window_layers == 1


def test_writes_with_a_cache():
    small = pruned("qwen3", 0.4)
    prompt = torch.tensor([TEXTS[0]])
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        cached, whole = (small.generate(prompt, use_cache=c, **settings) for c in (True, False))
    assert torch.equal(cached, whole)


def test_influence_agrees_with_a_naive_cosine():
    model = tiny("llama")
    with torch.no_grad():
        states = [model(torch.tensor([t]), output_hidden_states=True).hidden_states for t in TEXTS]
    for index, block in enumerate(walked(model)[:-1]):  # the last one's state has been normed
        pairs = [(of_text[index][0], of_text[index + 1][0]) for of_text in states]
        cosines = torch.cat([torch.cosine_similarity(a, b, dim=-1) for a, b in pairs])
        assert block.influence == pytest.approx(1 - cosines.mean().item(), abs=1e-5)


def test_neighbours_go_together_when_asked_to():
    influences = [0.9, 0.1, 0.5, 0.2, 0.3]
    assert depth.least(influences, 2) == {1, 3}
    assert depth.least_run(influences, 2) == {3, 4}
    small = pruned("llama", 0.4, contiguous=True)
    whole = walked(tiny("llama"))
    gone = depth.least_run([block.influence for block in whole], 2)
    for ours, theirs in zip(logits(small), logits(skipping(tiny("llama"), gone)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_whole_model_stays_as_it_was():
    model = tiny("gpt2, scaled by depth")
    before = logits(model)
    depth.prune_model(model, walked(model), 0.4)
    assert len(anatomy.blocks(model)) == model.config.num_hidden_layers == 5
    assert all(torch.equal(a, b) for a, b in zip(before, logits(model), strict=True))


@pytest.mark.parametrize(("sparsity", "says"), [(0.95, "all of them"), (0.05, "none")])
def test_at_least_one_layer_goes_and_one_stays(sparsity, says):
    with pytest.raises(UserError, match=f"of 5 layers is {says}") as refused:
        pruned("llama", sparsity)
    assert "\n" not in str(refused.value)
