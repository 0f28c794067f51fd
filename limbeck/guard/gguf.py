"""A GGUF file's header, read without a library: what it says of itself, and where its tensors lie.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from limbeck.errors import UserError
from limbeck.guard.jsons import refuse

MAGIC = b"GGUF"
VERSIONS = (2, 3)
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9
MAX_FIELDS, MAX_TENSORS, MAX_ITEMS = 10_000, 100_000, 1 << 23
MAX_STRING = 4 << 20  # bytes; the longest is a chat template
MAX_DIMENSIONS = 4
# (numbers in a block, its bytes) by ggml's number of the type; of types beside these nobody asks.
BLOCKS = {
    **{0: (1, 4), 1: (1, 2), 30: (1, 2)},  # F32, F16, BF16
    **{2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34)},  # Q4_0 to Q8_0
    **{10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210)},  # Q2_K…Q6_K
}
CONTROL_TYPES, USER_DEFINED = (2, 3), 4  # of a token: unknown and control; added by its maker
WAY_OUT = "export or fetch it again"


@dataclass(frozen=True)
class Header:
    """What a GGUF file says: its `fields` by name, and how many numbers its tensors hold."""

    path: Path
    fields: dict[str, Any]
    num_parameters: int

    @property
    def context(self) -> int:
        """How many tokens the model has learned to place."""
        return self._size("context_length")

    @property
    def template(self) -> str:
        """Its chat template; empty where it has none."""
        return str(self.fields.get("tokenizer.chat_template", ""))

    @property
    def tokens(self) -> list[str]:
        """The vocabulary, as the tokenizer writes it."""
        found = self._needed("tokenizer.ggml.tokens")
        if not isinstance(found, list) or not isinstance(found[0], str):  # a list is of one kind
            raise refuse(self.path, "has tokens that are no texts", WAY_OUT)
        return found

    def special(self, name: str) -> int | None:
        """The id of the token `bos`, `eos`, `unknown`…; None where there is none."""
        id = self.fields.get(f"tokenizer.ggml.{name}_token_id")
        return id if isinstance(id, int) and 0 <= id < len(self.tokens) else None

    def controls(self) -> dict[int, tuple[str, bool]]:
        """(text, whether it is special) of each token that is found in a text before all others."""
        types = self.fields.get("tokenizer.ggml.token_type")
        if types is None:
            return {}
        if not isinstance(types, list):
            raise refuse(self.path, "has no list of its tokens' types", WAY_OUT)
        return {
            id: (text, kind in CONTROL_TYPES)
            for id, (text, kind) in enumerate(zip(self.tokens, types, strict=False))
            if text and (kind in CONTROL_TYPES or kind == USER_DEFINED)
        }

    @property
    def cache_bytes(self) -> int:
        """What a token's keys and values take, as float16 in all layers of an ordinary decoder."""
        heads, width = self._size("attention.head_count"), self._size("embedding_length")
        keys = self._size("attention.key_length", width // heads)
        values = self._size("attention.value_length", width // heads)
        groups = self._size("attention.head_count_kv", heads)
        return 2 * self._size("block_count") * groups * (keys + values)

    def _size(self, name: str, otherwise: int | None = None) -> int:
        """A number of the architecture's; of one that differs by layer, the largest."""
        full = f"{self._needed('general.architecture')}.{name}"
        told = self.fields.get(full, otherwise)
        most = max(told, default=0) if isinstance(told, list) else told
        if not isinstance(most, int) or most < 1:
            raise refuse(self.path, f"does not say {full}", WAY_OUT)
        return most

    def _needed(self, name: str) -> Any:
        if not (value := self.fields.get(name)):
            raise refuse(self.path, f"does not say {name}", WAY_OUT)
        return value


def read_gguf(path: Path) -> Header:
    """The header of a file that has all the bytes it speaks of. UserError for any other."""
    if not path.is_file():
        raise refuse(path, "is no file", "name the file that `export` wrote")
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(24)
        if begin[:4] != MAGIC:
            raise refuse(path, "is no GGUF file", "name the file that `export` wrote")
        try:
            version, num_tensors, num_fields = struct.unpack("<IQQ", begin[4:])
            if version not in VERSIONS:
                raise refuse(path, f"is GGUF of version {version}, not 2 or 3", "convert it anew")
            if num_tensors > MAX_TENSORS or num_fields > MAX_FIELDS:
                raise refuse(path, f"claims {num_tensors:,} tensors, {num_fields:,} fields")
            reader = _Reader(path, file, size)
            fields = reader.fields(num_fields)
            alignment = fields.get("general.alignment", 32)
            if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16:
                raise refuse(path, f"has the alignment {alignment!r}", WAY_OUT)
            num_parameters, data = reader.tensors(num_tensors)
        except struct.error:
            raise _cut_off(path, size) from None
        if -(-file.tell() // alignment) * alignment + data > size:
            raise _cut_off(path, size)
    return Header(path, fields, num_parameters)


def _cut_off(path: Path, size: int) -> UserError:
    return refuse(path, f"is cut off: it has {size:,} bytes, and speaks of more", WAY_OUT)


@dataclass
class _Reader:
    path: Path
    file: BinaryIO
    size: int

    def fields(self, num: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for _ in range(num):
            name = self.string()
            if name in fields:
                raise refuse(self.path, f"says {name[:60]!r} twice", WAY_OUT)
            fields[name] = self.value(*self.numbers("I"))
        return fields

    def tensors(self, num: int) -> tuple[int, int]:
        """(the numbers in all tensors, the bytes that they take behind the header)."""
        total = end = 0
        for _ in range(num):
            name = self.string()
            (num_dimensions,) = self.numbers("I")
            if not 0 < num_dimensions <= MAX_DIMENSIONS:
                raise refuse(self.path, f"tensor {name[:60]!r} has no possible shape", WAY_OUT)
            count = math.prod(self.numbers(f"{num_dimensions}Q"))
            kind, offset = self.numbers("IQ")
            block, size = BLOCKS.get(kind, (1, 0))
            total, end = total + count, max(end, offset + count // block * size)
        return total, end

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            kind, count = self.numbers("IQ")
            if count > MAX_ITEMS or (kind != STRING and kind not in NUMBERS):
                raise refuse(self.path, f"has a list of {count:,} items of kind {kind}", WAY_OUT)
            if kind == STRING:
                return [self.string() for _ in range(count)]
            return list(self.numbers(f"{count}{NUMBERS[kind]}"))
        if kind not in NUMBERS:
            raise refuse(self.path, f"has a value of kind {kind}, which there is not", WAY_OUT)
        return self.numbers(NUMBERS[kind])[0]

    def string(self) -> str:
        (length,) = self.numbers("Q")
        if length > MAX_STRING:
            if length > self.size:
                raise struct.error
            raise refuse(self.path, f"has a text of {length:,} bytes", WAY_OUT)
        content = self.file.read(length)
        if len(content) < length:
            raise struct.error
        return content.decode("utf-8", "replace")

    def numbers(self, form: str) -> tuple[Any, ...]:
        """struct.error where the file ends before."""
        return struct.unpack(f"<{form}", self.file.read(struct.calcsize(f"<{form}")))
