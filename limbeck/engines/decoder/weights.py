"""The weights of a Hugging Face decoder, fused for decoding: Llama, Qwen2, Qwen3 and GPT-2.

Query, key and value become one matrix, gate and up another: fewer, larger products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from limbeck.engines.decoder.linear import Linear, Product
from limbeck.engines.decoder.quantized import Join, Stored, joining
from limbeck.errors import UserError

LLAMA_LIKE = ("llama", "qwen2", "qwen3")
FAMILIES = (*LLAMA_LIKE, "gpt2")
FIXED_ANGLES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angles depend on the position alone, not on the text's length."""

CPU = torch.device("cpu")

Named = Mapping[str, Tensor]


@dataclass
class Norm:
    """RMSNorm, or LayerNorm where there is a bias; its weights are float32 whatever the model's."""

    weight: Tensor  # (C,)
    bias: Tensor | None
    epsilon: float


@dataclass
class Layer:
    """Attention of H heads that share K key heads of width E, then a feed-forward block."""

    index: int
    heads: int
    key_heads: int
    width: int
    scale: float
    window: int | None  # how many tokens are seen, the newest included; None is all
    norm: Norm
    qkv: Product  # to (H + 2 K) E
    query_norm: Norm | None
    key_norm: Norm | None
    out: Product
    feed_norm: Norm
    up: Product  # to 2 I where it is gated: gates, then ups
    is_gated: bool
    activation: str  # transformers' word for it
    down: Product


@dataclass
class Decoder:
    """A whole model. `angles` gives (cosines, sines) (L, E / 2) of the first L positions."""

    layers: list[Layer]
    embedding: Tensor  # (V, C)
    positions: Tensor | None  # (context, C), where they are learned
    norm: Norm
    head: Linear
    context: int
    angles: Callable[[int], tuple[Tensor, Tensor] | None]
    is_quantized: bool = False

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    def cache_bytes(self, dtype: torch.dtype) -> int:
        """Of one token's keys and values in all layers."""
        return sum(2 * x.key_heads * x.width * dtype.itemsize for x in self.layers)

    def load(self, weights: Named, config: PretrainedConfig) -> None:
        """Overwrites all weights in place; UserError, and no change, where they do not fit."""
        if self.is_quantized:
            way_out = "write with the model that it was made of, and quantize that again"
            raise UserError("model", "is quantized and takes no new weights", way_out)
        try:
            layers, others = _read(weights, config, self.device, _joining(weights))
        except (KeyError, RuntimeError) as error:
            raise _cannot_load(f"{error} is missing or does not fit") from error
        olds = [*tensors(self.layers, self._others())]
        news = [*tensors(layers, others)]
        if len(olds) != len(news):
            raise _cannot_load("some are missing or too many")
        pairs = [*zip(olds, news, strict=True)]
        for old, new in pairs:
            if old.shape != new.shape:
                raise _cannot_load(f"one is {tuple(new.shape)} where {tuple(old.shape)} is needed")
            if not bool(new.isfinite().all()):
                raise _cannot_load("they are not finite")
        for old, new in pairs:
            old.copy_(new)

    def _others(self) -> list[Tensor | None]:
        norm = self.norm
        return [self.embedding, self.positions, norm.weight, norm.bias, self.head.weight]


def cannot_read(config: PretrainedConfig) -> str | None:
    """Why a model must be left to transformers' own generate, or None."""
    if config.model_type not in FAMILIES:
        return f"{config.model_type} is none of {', '.join(FAMILIES)}"
    rope = getattr(config, "rope_parameters", None) or {}
    if (kind := rope.get("rope_type", "default")) not in FIXED_ANGLES:
        return f"its rotary embedding is {kind}, which depends on the text's length"
    if getattr(config, "quantization_config", None) is not None:
        return "its weights are quantized in a form that is not ours"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds - {"sliding_attention"}:
        return f"its layers are {', '.join(sorted(kinds))}"
    if config.model_type == "gpt2" and (
        config.add_cross_attention or not config.scale_attn_weights
    ):
        return "its attention is not GPT-2's own"
    return None


def can_read_codes(config: PretrainedConfig) -> bool:
    """Whether a model's layers can be read as codes."""
    return config.model_type in LLAMA_LIKE and cannot_read(config) is None


def read(
    model: PreTrainedModel, device: torch.device | None = None, stored: Stored | None = None
) -> Decoder:
    """The model's weights, copied to `device` [the model's own], one layer at a time.

    What happens to the model afterwards changes nothing here. With `stored` they are its instead,
    which is emptied [on the CPU], and of the model only the shape is looked at.
    """
    config, device = model.config, device or (model.device if stored is None else CPU)
    weights = model.state_dict() if stored is None else stored.weights
    join = _joining(weights) if stored is None else joining(stored, device)
    layers, others = _read(weights, config, device, join)
    embedding, positions, norm, norm_bias, head = others
    assert embedding is not None and norm is not None and head is not None
    is_gpt2 = config.model_type == "gpt2"
    epsilon = config.layer_norm_epsilon if is_gpt2 else config.rms_norm_eps
    ours = embedding.to(device, copy=True)
    return Decoder(
        layers=layers,
        embedding=ours,
        positions=None if positions is None else positions.to(device, copy=True),
        norm=Norm(norm, norm_bias, epsilon),
        head=Linear(ours if head is embedding else head.to(device, copy=True), None),
        context=config.max_position_embeddings,
        angles=_no_angles if is_gpt2 else _angles(model, device),
        is_quantized=stored is not None,
    )


def _joining(weights: Named) -> Join:
    def join(modules: Sequence[str], bias: Tensor | None) -> Linear:
        return Linear(torch.cat([weights[f"{module}.weight"] for module in modules]), bias)

    return join


def _read(
    weights: Named, config: PretrainedConfig, device: torch.device, join: Join
) -> tuple[list[Layer], list[Tensor | None]]:
    """(layers, [embedding, learned positions, norm, its bias, head]) on a device."""
    layers = []
    for index in range(config.num_hidden_layers):
        if config.model_type == "gpt2":
            layer = _gpt2_layer(weights, config, index)
        else:
            layer = _llama_layer(weights, config, index, join)
        layers.append(_moved(layer, device))
    if config.model_type == "gpt2":
        embedding, positions = weights["transformer.wte.weight"], weights["transformer.wpe.weight"]
        norm, bias = weights["transformer.ln_f.weight"], weights["transformer.ln_f.bias"]
    else:
        embedding, positions = weights["model.embed_tokens.weight"], None
        norm, bias = weights["model.norm.weight"], None
    head = embedding if config.tie_word_embeddings else weights["lm_head.weight"]
    norm, bias = _exact(norm, device), None if bias is None else _exact(bias, device)
    return layers, [embedding, positions, norm, bias, head]


def _exact(weight: Tensor, device: torch.device) -> Tensor:
    return weight.to(device, torch.float32, copy=True)


def _moved(layer: Layer, device: torch.device) -> Layer:
    for part in vars(layer).values():
        if isinstance(part, Norm | Linear):
            part.weight = part.weight.to(device)
            part.bias = None if part.bias is None else part.bias.to(device)
    return layer


def _llama_layer(weights: Named, config: PretrainedConfig, index: int, join: Join) -> Layer:
    prefix = f"model.layers.{index}."

    def linear(*names: str) -> Product:
        """The matrices of these names, one below the other."""
        modules = [f"{prefix}{name}" for name in names]
        biases = [weights[key] for module in modules if (key := f"{module}.bias") in weights]
        return join(modules, torch.cat(biases) if biases else None)

    def norm(name: str) -> Norm | None:
        weight = weights.get(f"{prefix}{name}.weight")
        return weight if weight is None else Norm(weight.float().clone(), None, config.rms_norm_eps)

    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    before, behind = norm("input_layernorm"), norm("post_attention_layernorm")
    if before is None or behind is None:
        raise KeyError(f"{prefix}input_layernorm or post_attention_layernorm")
    return Layer(
        index=index,
        heads=heads,
        key_heads=config.num_key_value_heads,
        width=width,
        scale=width**-0.5,
        window=_window(config, index),
        norm=before,
        qkv=linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        query_norm=norm("self_attn.q_norm"),
        key_norm=norm("self_attn.k_norm"),
        out=linear("self_attn.o_proj"),
        feed_norm=behind,
        up=linear("mlp.gate_proj", "mlp.up_proj"),
        is_gated=True,
        activation=config.hidden_act,
        down=linear("mlp.down_proj"),
    )


def _gpt2_layer(weights: Named, config: PretrainedConfig, index: int) -> Layer:
    prefix = f"transformer.h.{index}."

    def linear(name: str) -> Linear:
        """GPT-2 keeps its matrices the other way round."""
        matrix, bias = weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"]
        return Linear(matrix.t().contiguous(), bias.clone())

    def norm(name: str) -> Norm:
        weight, bias = weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"]
        return Norm(weight.float().clone(), bias.float().clone(), config.layer_norm_epsilon)

    width = config.n_embd // config.n_head
    by_depth = index + 1 if config.scale_attn_by_inverse_layer_idx else 1
    return Layer(
        index=index,
        heads=config.n_head,
        key_heads=config.n_head,
        width=width,
        scale=width**-0.5 / by_depth,
        window=None,
        norm=norm("ln_1"),
        qkv=linear("attn.c_attn"),
        query_norm=None,
        key_norm=None,
        out=linear("attn.c_proj"),
        feed_norm=norm("ln_2"),
        up=linear("mlp.c_fc"),
        is_gated=False,
        activation=config.activation_function,
        down=linear("mlp.c_proj"),
    )


def _window(config: PretrainedConfig, index: int) -> int | None:
    kinds = getattr(config, "layer_types", None)
    slides = kinds is not None and kinds[index] == "sliding_attention"
    return config.sliding_window if slides else None


def _cannot_load(reason: str) -> UserError:
    way_out = "give it the weights of the same model"
    return UserError("model", f"cannot take the new weights: {reason}", way_out)


def _no_angles(_: int) -> None:
    return None


def _angles(model: PreTrainedModel, device: torch.device) -> Callable[[int], tuple[Tensor, Tensor]]:
    rotary = type(model.model.rotary_emb)(model.config)  # the model itself may go, or be a shape

    def angles(length: int) -> tuple[Tensor, Tensor]:
        one = torch.zeros(1, 1, dtype=torch.float32)
        cosines, sines = rotary(one, torch.arange(length)[None])
        half = cosines.shape[-1] // 2  # the other half is the same
        halves = (table[0, :, :half].to(device).contiguous() for table in (cosines, sines))
        return next(halves), next(halves)

    return angles


def tensors(layers: list[Layer], others: list[Tensor | None]) -> Iterator[Tensor]:
    """Every weight, always in the same order."""
    for layer in layers:
        for field in fields(layer):
            part = getattr(layer, field.name)
            if isinstance(part, Norm | Linear):
                yield part.weight
                if part.bias is not None:
                    yield part.bias
    yield from (tensor for tensor in others if tensor is not None)
