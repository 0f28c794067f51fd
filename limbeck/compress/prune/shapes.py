"""The sizes of a decoder, and along which of them each of its weights extends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

from limbeck.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Axes = tuple[str | None, ...]
"""What a weight's dimensions are: `channels`, `neurons`, `queries` or `keys` (heads times their
width), `joint` (GPT-2's queries, keys and values one after another); None for what stays."""


@dataclass(frozen=True)
class Family:
    """Architectures whose weights have the same names.

    `weights` are those of a block, `others` those around the blocks. What the matrices `heads`,
    `neurons` and `channels` read tells what such units are worth.
    """

    weights: Mapping[str, Axes]
    others: Mapping[str, Axes]
    heads: str
    neurons: str
    channels: tuple[str, ...]
    num_neurons: str
    epsilon: str
    """The config's names for the width of the feed-forward block, and for what norms add."""


def _linear(matrices: Mapping[str, Axes]) -> dict[str, Axes]:
    """The axes of weights (out, in) and of their biases, by those of the matrices."""
    weights = {f"{name}.weight": axes for name, axes in matrices.items()}
    return weights | {f"{name}.bias": axes[:1] for name, axes in matrices.items()}


LLAMA = Family(
    weights={
        **_linear(
            {
                "self_attn.q_proj": ("queries", "channels"),
                "self_attn.k_proj": ("keys", "channels"),
                "self_attn.v_proj": ("keys", "channels"),
                "self_attn.o_proj": ("channels", "queries"),
                "mlp.gate_proj": ("neurons", "channels"),
                "mlp.up_proj": ("neurons", "channels"),
                "mlp.down_proj": ("channels", "neurons"),
            }
        ),
        "self_attn.q_norm.weight": (None,),
        "self_attn.k_norm.weight": (None,),
        "input_layernorm.weight": ("channels",),
        "post_attention_layernorm.weight": ("channels",),
    },
    others={
        "model.embed_tokens.weight": (None, "channels"),
        "model.norm.weight": ("channels",),
        "lm_head.weight": (None, "channels"),
    },
    heads="self_attn.o_proj",
    neurons="mlp.down_proj",
    channels=("self_attn.q_proj", "mlp.gate_proj"),
    num_neurons="intermediate_size",
    epsilon="rms_norm_eps",
)
GPT2 = Family(
    weights={  # its matrices are (in, out)
        "attn.c_attn.weight": ("channels", "joint"),
        "attn.c_attn.bias": ("joint",),
        "attn.c_proj.weight": ("queries", "channels"),
        "attn.c_proj.bias": ("channels",),
        "mlp.c_fc.weight": ("channels", "neurons"),
        "mlp.c_fc.bias": ("neurons",),
        "mlp.c_proj.weight": ("neurons", "channels"),
        "mlp.c_proj.bias": ("channels",),
        "ln_1.weight": ("channels",),
        "ln_1.bias": ("channels",),
        "ln_2.weight": ("channels",),
        "ln_2.bias": ("channels",),
    },
    others={
        "transformer.wte.weight": (None, "channels"),
        "transformer.wpe.weight": (None, "channels"),
        "transformer.ln_f.weight": ("channels",),
        "transformer.ln_f.bias": ("channels",),
        "lm_head.weight": (None, "channels"),
    },
    heads="attn.c_proj",
    neurons="mlp.c_proj",
    channels=("attn.c_attn", "mlp.c_fc"),
    num_neurons="n_inner",
    epsilon="layer_norm_epsilon",
)
FAMILIES = {"llama": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA, "mistral": LLAMA, "gpt2": GPT2}


@dataclass(frozen=True)
class Sizes:
    """`keys` heads of `width`, each shared by `sharing` query heads; `neurons`; `channels`."""

    keys: int
    sharing: int
    width: int
    neurons: int
    channels: int

    @property
    def queries(self) -> int:
        return self.keys * self.sharing

    def along(self, axis: str) -> int:
        """How far a weight extends along an axis."""
        heads = {"queries": self.queries, "keys": self.keys, "joint": 3 * self.queries}
        return heads[axis] * self.width if axis in heads else int(getattr(self, axis))


@dataclass(frozen=True)
class Shape:
    """What a model is like: its `kind`, its sizes, and of every weight the axes by its name.

    `block` are the shapes of one block's weights, by their names within it.
    """

    kind: str
    sizes: Sizes
    axes: Mapping[str, Axes]
    block: Mapping[str, tuple[int, ...]]

    @property
    def family(self) -> Family:
        return FAMILIES[self.kind]

    def num_parameters(self, sizes: Sizes) -> int:
        """Of a block that had these sizes."""
        return sum(
            prod(
                sizes.along(axis) if axis else length
                for axis, length in zip(self.family.weights[name], shape, strict=True)
            )
            for name, shape in self.block.items()
        )

    @cached_property
    def whole(self) -> int:
        """The parameters of a block as it is."""
        return self.num_parameters(self.sizes)

    def share_gone(self, sizes: Sizes) -> float:
        """Of a block's parameters, were it to have these sizes."""
        return 1 - self.num_parameters(sizes) / self.whole

    def fits(self, sizes: Sizes) -> bool:
        """Whether these are sizes that others load.

        GPT-2's config has no width of heads, and vLLM and llama.cpp do not ask for Qwen2's: all
        heads together are as wide as the model. Llama's demands that their number divides that.
        """
        if self.kind in ("gpt2", "qwen2"):
            return sizes.queries * sizes.width == sizes.channels
        return self.kind != "llama" or sizes.channels % sizes.queries == 0


def shape_of(model: PreTrainedModel) -> Shape:
    """UserError for an architecture whose weights are not known here."""
    from limbeck.compress import anatomy

    config, where = model.config, f"model {model.name_or_path or 'here'}"
    if config.model_type not in FAMILIES:
        what = f"{config.model_type} is no architecture that width can prune"
        raise UserError(where, what, f"take one of {', '.join(FAMILIES)}, or prune by depth")
    family = FAMILIES[config.model_type]
    axes = dict(family.others)
    for name in anatomy.names(model):
        axes |= {f"{name}.{part}": of_part for part, of_part in family.weights.items()}
    for name, _ in model.named_parameters():
        if name not in axes:
            raise UserError(where, f"width does not know its {name}", "prune by depth")
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    neurons = getattr(config, family.num_neurons) or 4 * config.hidden_size  # GPT-2's default
    sizes = Sizes(keys, heads // keys, width, neurons, config.hidden_size)
    block = anatomy.blocks(model)[0].named_parameters()
    shapes = {name: tuple(weight.shape) for name, weight in block}
    return Shape(config.model_type, sizes, axes, shapes)
