"""Hugging Face decoders as llama.cpp knows them: its names for their numbers and tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from limbeck.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

ARCHITECTURES = {  # transformers' model type -> llama.cpp's
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gpt2": "gpt2",
}
ACTIVATIONS = {"gpt2": ("gelu_new", "gelu_pytorch_tanh")}
CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # GPT-2 keeps them as (in, out)
UNUSUAL = (  # settings of GPT-2 that llama.cpp does not have
    "scale_attn_by_inverse_layer_idx",
    "reorder_and_upcast_attn",
    "add_cross_attention",
)


def architecture(config: Any) -> str:
    """llama.cpp's name for a model's kind; UserError for one that cannot be written."""
    kind = config.model_type
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        way_out = f"export one of {known}, or use llama.cpp's own convert_hf_to_gguf.py"
        raise UserError("export", f"cannot write a {kind} model as GGUF", way_out)
    for what in _obstacles(config):
        way_out = "use llama.cpp's own convert_hf_to_gguf.py, if it knows such a model"
        raise UserError("export", f"cannot write the {kind} model as GGUF: {what}", way_out)
    return ARCHITECTURES[kind]


def _obstacles(config: Any) -> Iterator[str]:
    """What llama.cpp would compute otherwise than transformers does."""
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation_function", "")
    if activation not in ACTIVATIONS.get(config.model_type, ("silu",)):
        yield f"its activation is {activation}"
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()) or (
        config.model_type == "mistral" and config.sliding_window is not None
    ):
        window = config.sliding_window
        if window is None or window < config.max_position_embeddings:
            yield f"its attention slides over {window} tokens of {config.max_position_embeddings}"
    for setting in UNUSUAL:
        if getattr(config, setting, False):
            yield f"it has {setting}"
    rope = _rope(config)
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear", "yarn") and (kind, config.model_type) not in (
        ("llama3", "llama"),
        ("llama3", "mistral"),
    ):
        yield f"its rotary positions are scaled by {kind}"
    if kind == "yarn" and rope.get("beta_slow") not in (None, 1, 1.0):
        yield f"its rotary positions have beta_slow {rope['beta_slow']:g}"
    if kind == "yarn" and rope.get("truncate") is False:
        yield "its rotary positions are scaled by yarn without truncate"
    if config.model_type == "qwen3" and config.attention_bias:
        yield "its attention has biases"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        yield "it turns only a part of each head"


def fields(config: Any) -> dict[str, Any]:
    """What llama.cpp has to know of the model: setters of gguf's writer with their values."""
    if config.model_type == "gpt2":
        return {
            "block_count": config.n_layer,
            "context_length": config.n_positions,
            "embedding_length": config.n_embd,
            "feed_forward_length": config.n_inner or 4 * config.n_embd,
            "head_count": config.n_head,
            "layer_norm_eps": config.layer_norm_epsilon,
            "vocab_size": config.vocab_size,
        }
    width = head_width(config)
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "head_count": config.num_attention_heads,
        "head_count_kv": config.num_key_value_heads,
        "key_length": width,
        "value_length": width,
        "layer_norm_rms_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        "rope_dimension_count": width,
        **_rope_fields(config),
    }


def head_width(config: Any) -> int:
    """Numbers of one attention head."""
    told = getattr(config, "head_dim", None)
    return int(told or config.hidden_size // config.num_attention_heads)


def _rope(config: Any) -> dict[str, Any]:
    return dict(getattr(config, "rope_parameters", None) or {})


def _rope_fields(config: Any) -> dict[str, Any]:
    """Rotary positions; what `llama3` does to them is a tensor of its own (`_llama3_factors`)."""
    from gguf import RopeScalingType

    rope = _rope(config)
    told: dict[str, Any] = {"rope_freq_base": rope["rope_theta"]}
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        told |= {"rope_scaling_type": RopeScalingType.LINEAR}
        told |= {"rope_scaling_factor": rope["factor"]}
    elif kind == "yarn":
        length = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        told |= {"rope_scaling_type": RopeScalingType.YARN, "rope_scaling_factor": rope["factor"]}
        told |= {"rope_scaling_orig_ctx_len": length}
        told |= {"rope_scaling_attn_factors": _yarn_attention(rope)}
        told |= {
            f"rope_scaling_yarn_{name}": rope[name]
            for name in ("beta_fast", "beta_slow")
            if rope.get(name) is not None
        }
    return told


def _yarn_attention(rope: dict[str, Any]) -> float:
    """By what the logits are scaled beyond the 1 + 0.1 ln(factor) that llama.cpp does itself."""
    own = 0.1 * math.log(rope["factor"]) + 1.0
    told = rope.get("attention_factor")
    if told is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        scales = [0.1 * rope[name] * math.log(rope["factor"]) + 1.0 for name in
                  ("mscale", "mscale_all_dim")]  # fmt: skip
        told = scales[0] / scales[1]
    return (own if told is None else told) / own


def weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """(llama.cpp's name, the weight as rows of inputs) of every weight, tied ones once.

    These are views: what is written into them is written into the model.
    """
    import gguf

    config = model.config
    kind = architecture(config)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        told = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if told is None:
            way_out = "use llama.cpp's own convert_hf_to_gguf.py, if it knows such a model"
            raise UserError("export", f"llama.cpp's {kind} has no tensor for {name}", way_out)
        yield told, weight.T if kind == "gpt2" and name.endswith(CONV1D) else weight


def tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """(llama.cpp's name, tensor as it wants it) of all that it computes with; float32, on the CPU.

    llama's rotary positions turn neighbouring numbers of a head in llama.cpp, and halves of it in
    transformers: there the rows of q and k are put in order.
    """
    import torch

    config = model.config
    if _rope(config).get("rope_type") == "llama3":
        yield "rope_freqs.weight", _llama3_factors(config)
    for name, weight in weights(model):
        tensor = weight.detach().to("cpu", torch.float32)
        if architecture(config) == "llama" and ".attn_q." in name:
            tensor = _interleaved(tensor, config.num_attention_heads)
        elif architecture(config) == "llama" and ".attn_k." in name:
            tensor = _interleaved(tensor, config.num_key_value_heads)
        yield name, tensor.contiguous()


def _interleaved(weight: Tensor, num_heads: int) -> Tensor:
    """Rows 0, d/2, 1, d/2 + 1, … of each head's d."""
    halves = weight.reshape(num_heads, 2, len(weight) // num_heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _llama3_factors(config: Any) -> Tensor:
    """(E / 2,) by what each frequency is divided, as transformers itself computes them."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    width = head_width(config)
    steps = torch.arange(0, width, 2, dtype=torch.float32) / width
    return (1.0 / _rope(config)["rope_theta"] ** steps) / scaled
