"""How large a model is: from its own config.json, a table of models that recipes name, or its name.

What nobody knows is NaN, and stays so in whatever is reckoned from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isnan, nan
from pathlib import Path
from typing import Any

DENSE = ("llama", "mistral", "qwen2", "qwen3")  # decoders of one plan: SwiGLU, grouped keys
NAMED_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s*([bBmM])(?![A-Za-z0-9])")
FIELDS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "tie_word_embeddings",
)
QWEN_3B = ("qwen2", 2048, 11008, 36, 16, 2, 151936, True)
QWEN_7B = ("qwen2", 3584, 18944, 28, 28, 4, 152064, False)
QWEN_14B = ("qwen2", 5120, 13824, 48, 40, 8, 152064, False)
QWEN_32B = ("qwen2", 5120, 27648, 64, 40, 8, 152064, False)
LLAMA_8B = ("llama", 4096, 14336, 32, 32, 8, 128256, False)
LLAMA_70B = ("llama", 8192, 28672, 80, 64, 8, 128256, False)
KNOWN = {  # what their config.json says, in the order of FIELDS
    "Qwen/Qwen2.5-Math-1.5B": ("qwen2", 1536, 8960, 28, 12, 2, 151936, True),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": ("qwen2", 1536, 8960, 28, 12, 2, 151936, False),
    "Qwen/Qwen2.5-3B-Instruct": QWEN_3B,
    "Qwen/Qwen2.5-Math-7B": QWEN_7B,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": QWEN_7B,
    "Qwen/Qwen2.5-14B": QWEN_14B,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": QWEN_14B,
    "Qwen/Qwen2.5-32B": QWEN_32B,
    "Qwen/Qwen2.5-32B-Instruct": QWEN_32B,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": QWEN_32B,
    "meta-llama/Llama-3.1-8B": LLAMA_8B,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": LLAMA_8B,
    "meta-llama/Llama-3.3-70B-Instruct": LLAMA_70B,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": LLAMA_70B,
}


@dataclass(frozen=True)
class Shape:
    """A model's size. `num_active` are the parameters that a token meets, fewer in a mixture of
    experts; `key_width` is that of a token's keys in one layer; `source` says who told.
    `num_tables` are the embeddings and, where it is not tied to them, the head; `bits` those of a
    number in the matrices of its layers, where these are quantized."""

    num_parameters: float = nan
    num_active: float = nan
    hidden_size: float = nan
    intermediate_size: float = nan
    num_layers: float = nan
    key_width: float = nan
    vocabulary: float = nan
    source: str = "unknown"
    num_tables: int = 1
    bits: float | None = None

    @property
    def block_parameters(self) -> float:
        """Those of all layers; all that there are, where nobody tells how large the tables are."""
        tables = self.num_tables * self.vocabulary * self.hidden_size
        return self.num_parameters - (0.0 if isnan(tables) else tables)

    @property
    def layer_parameters(self) -> float:
        """Those of one layer."""
        return self.block_parameters / self.num_layers

    def num_bytes(self, width: float) -> float:
        """Of its weights at `width` bytes a number, but for those that are quantized."""
        saved = 0.0 if self.bits is None else max(0.0, width - self.bits / 8)
        return self.num_parameters * width - self.block_parameters * saved

    def shallower(self, share: float) -> Shape:
        """Without a share of its layers."""
        return replace(self._smaller(share), num_layers=self.num_layers * (1 - share))

    def narrower(self, share: float) -> Shape:
        """With layers of which heads and neurons have gone alike."""
        widths = {n: getattr(self, n) * (1 - share) for n in ("intermediate_size", "key_width")}
        return replace(self._smaller(share), **widths)

    def _smaller(self, share: float) -> Shape:
        left = 1 - share * self.block_parameters / self.num_parameters
        active = self.num_active * left
        return replace(self, num_parameters=self.num_parameters * left, num_active=active)

    def adapter_parameters(self, rank: int) -> float:
        """Those of adapters of this rank on every linear layer but the head."""
        hidden, inner = self.hidden_size, self.intermediate_size
        sides = 4 * hidden + 2 * (hidden + self.key_width) + 3 * (hidden + inner)
        return rank * sides * self.num_layers


UNKNOWN = Shape()
V3 = Shape(671e9, 37e9, 7168, nan, 61, 576, 129280, "2412.19437")  # latent keys of 512 + 64
EXPERTS = {f"deepseek-ai/DeepSeek-{name}": V3 for name in ("V3", "V3-Base", "R1", "R1-Zero")}


def of_config(config: Mapping[str, Any], source: str = "its config.json") -> Shape:
    """From the fields of a transformers config; UNKNOWN for an architecture that is not ours."""
    if config.get("model_type") == "gpt2":
        return _gpt2(config, source)
    if config.get("model_type") not in DENSE:
        return UNKNOWN
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    inner, layers, words = (
        config[name] for name in ("intermediate_size", "num_hidden_layers", "vocab_size")
    )
    head_width = config.get("head_dim") or hidden // heads
    queries = heads * head_width
    keys = (config.get("num_key_value_heads") or heads) * head_width
    is_qwen2, is_qwen3 = (config["model_type"] == name for name in ("qwen2", "qwen3"))
    bias = queries + 2 * keys if is_qwen2 or config.get("attention_bias") else 0
    norms = 2 * hidden + (2 * head_width if is_qwen3 else 0)
    layer = 2 * hidden * (queries + keys) + bias + 3 * hidden * inner + norms
    tables = 1 if config.get("tie_word_embeddings", False) else 2
    num = layers * layer + tables * words * hidden + hidden
    return Shape(num, num, hidden, inner, layers, keys, words, source, tables)


def _gpt2(config: Mapping[str, Any], source: str) -> Shape:
    hidden, layers, words = (config[name] for name in ("n_embd", "n_layer", "vocab_size"))
    inner = config.get("n_inner") or 4 * hidden
    layer = 4 * hidden * hidden + 2 * hidden * inner + 9 * hidden + inner
    num = layers * layer + (words + config["n_positions"] + 2) * hidden
    return Shape(num, num, hidden, inner, layers, hidden, words, source)


def of_model(model: str) -> Shape:
    """Of a folder or a Hub name: its config.json where that is at hand, else the table, else the
    size in its name, `Qwen/Qwen3-8B`."""
    name = model.partition("@")[0]
    if config := _config_at_hand(model):
        try:
            found = replace(of_config(config), bits=_bits(config))
        except (KeyError, TypeError):  # it lacks what others have
            found = UNKNOWN
        if not isnan(found.num_parameters):
            return found
    if name in EXPERTS:
        return EXPERTS[name]
    if name in KNOWN:
        return of_config(dict(zip(FIELDS, KNOWN[name], strict=True)), "Limbeck's table")
    size = NAMED_SIZE.search(name.replace("-", " ").replace("_", " "))
    num = float(size[1]) * (1e9 if size[2] in "bB" else 1e6) if size else 0.0
    return Shape(num, num, source="its name") if num else UNKNOWN


def _bits(config: Mapping[str, Any]) -> float | None:
    """Of a number in the matrices that compressed-tensors has quantized."""
    groups = (config.get("quantization_config") or {}).get("config_groups") or {}
    told = [group["weights"]["num_bits"] for group in groups.values()]
    return float(max(told)) if told else None


def _config_at_hand(model: str) -> dict[str, Any] | None:
    """config.json of a folder, or of the Hub's cache on this machine; nothing is downloaded."""
    path: Any = Path(model) / "config.json"
    if not path.exists():
        try:
            from huggingface_hub import try_to_load_from_cache

            name, _, revision = model.partition("@")
            path = try_to_load_from_cache(name, "config.json", revision=revision or None)
        except (ImportError, ValueError):  # no Hub, or no name of its
            return None
    if not isinstance(path, str | Path):
        return None
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
