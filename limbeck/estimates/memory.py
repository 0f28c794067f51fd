"""What a device must hold: weights, gradients, moments and activations, by how they are spread.

Bytes. NaN where the model's shape is not known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, isnan

from limbeck.estimates.shapes import Shape

WEIGHT, GRADIENT = 4, 4  # float32, whatever a step computes in
MOMENTS = {"adamw": 8, "adamw_8bit": 2}
BASE = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "nf4": 0.5}
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}
SLACK = 1.1  # fragments, buffers and the kernels themselves
NODE = 8  # devices are rented by so many


@dataclass(frozen=True)
class TrainingMemory:
    """A training, as far as its memory goes. `at_once` are the tokens that a device computes
    together; `copies` the bytes, for each parameter, of what lies beside the student and is spread
    as it is, `whole_copies` of what every device holds whole."""

    shape: Shape
    at_once: float
    dtype: str = "float32"
    checkpointing: bool = False
    optimizer: str = "adamw"
    rank: int | None = None
    base: str = "float32"
    copies: float = 0
    whole_copies: float = 0

    def bytes_per_device(self, devices: int) -> float:
        """What one of so many devices holds: FSDP spreads all but the activations."""
        shape = self.shape
        if self.rank is None:
            state = shape.num_parameters * (WEIGHT + GRADIENT + MOMENTS[self.optimizer])
        else:
            adapters = shape.adapter_parameters(self.rank)
            state = shape.num_parameters * BASE[self.base]
            state += adapters * (WEIGHT + GRADIENT + MOMENTS[self.optimizer])
        spread = (state + shape.num_parameters * self.copies) / devices
        whole = shape.num_parameters * self.whole_copies
        return SLACK * (spread + whole + self._gathered(devices) + self._activations())

    def _gathered(self, devices: int) -> float:
        """What FSDP has in one piece for a moment: a layer and its gradient, and the embeddings."""
        if devices == 1:
            return 0.0
        tables = 2 * self.shape.vocabulary * self.shape.hidden_size
        return WIDTH[self.dtype] * (2 * self.shape.layer_parameters + tables)

    def _activations(self) -> float:
        """What the backward pass needs of each token: what enters two norms, attention and the
        feed-forward layer and what leaves them, in each layer; with checkpointing of one layer
        whole, and of all others what entered them."""
        shape = self.shape
        layer = 6 * shape.hidden_size + 2 * shape.key_width + 4 * shape.intermediate_size
        kept = shape.num_layers * layer
        if self.checkpointing:
            kept = shape.num_layers * shape.hidden_size + layer
        return self.at_once * WIDTH[self.dtype] * kept

    def ways_out(self, devices: int, spreads: bool, room: float) -> Iterator[str]:
        """What would fit in `room` bytes a device: the cheapest setting, and more devices where
        that `spreads` it."""
        lighter = replace(self, checkpointing=True)
        settings = {
            "gradient_checkpointing: true": lighter,
            "optimizer: adamw_8bit": replace(lighter, optimizer="adamw_8bit"),
            "lora: {base: bfloat16}": replace(lighter, rank=16, base="bfloat16"),
        }
        also = "" if self.checkpointing else " with gradient_checkpointing"
        for name, one in settings.items():
            if one != self and one.bytes_per_device(devices) <= room:
                yield name if one == lighter else name + also
                break
        if spreads and (num := lighter.devices_needed(devices, room)):
            yield f"{num} devices{also}"

    def devices_needed(self, devices: int, room: float) -> int | None:
        """The fewest devices, in whole nodes, that hold it; None where no number would."""
        for nodes in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128):
            if nodes * NODE > devices and self.bytes_per_device(nodes * NODE) <= room:
                return nodes * NODE
        return None


@dataclass(frozen=True)
class WritingMemory:
    """A model that writes: its weights, quantized ones as they are where the engine keeps them
    `packed`, and keys and values of `rows` texts of `tokens` tokens."""

    shape: Shape
    dtype: str
    rows: float
    tokens: float
    packed: bool = False

    def bytes_per_device(self, devices: int) -> float:
        """What one of so many devices holds if they share the model."""
        shape, width = self.shape, WIDTH[self.dtype]
        cache = 2 * shape.num_layers * shape.key_width * self.rows * self.tokens
        weights = shape.num_bytes(width) if self.packed else width * shape.num_parameters
        return SLACK * (weights + width * cache) / devices

    def ways_out(self, devices: int, spreads: bool, room: float) -> Iterator[str]:
        """What would fit in `room` bytes a device."""
        if self.dtype == "float32":
            lighter = replace(self, dtype="bfloat16")
            if lighter.bytes_per_device(devices) <= room:
                yield "dtype: bfloat16"
        one = self.bytes_per_device(1)
        if not isnan(one):
            yield f"vllm on {ceil(one / room)} devices or more"


@dataclass(frozen=True)
class CalibrationMemory:
    """Texts that go through a model layer by layer: one layer, `at_once` tokens in it and, with
    `gram`, what is summed of their products and its inverse; all in float32."""

    shape: Shape
    at_once: float
    gram: bool = False

    def bytes_per_device(self, devices: int) -> float:
        """What the one device holds; the other layers, and what enters the next, the host keeps."""
        shape = self.shape
        inside = 6 * shape.hidden_size + 2 * shape.key_width + 4 * shape.intermediate_size
        sums = 4 * shape.hidden_size**2 + shape.intermediate_size**2 if self.gram else 0.0
        return SLACK * WEIGHT * (shape.layer_parameters + self.at_once * inside + 2 * sums)

    def ways_out(self, devices: int, spreads: bool, room: float) -> Iterator[str]:
        """What would fit in `room` bytes."""
        if self.gram and replace(self, gram=False).bytes_per_device(1) <= room:
            yield "a method that needs no products of inputs (wanda, round)"


Memory = TrainingMemory | WritingMemory | CalibrationMemory
