"""A GGUF file's tokenizer and chat template, in the words in which `chat` asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from limbeck import guard
from limbeck.engines.llama_cpp_server.server import Server
from limbeck.guard.gguf import Header

PROBE = ({"role": "user", "content": "?"},)


@dataclass(frozen=True)
class Control:
    """A token that is found in a text before all others."""

    content: str
    special: bool


class Tokenizer:
    """llama.cpp's reading of the file's vocabulary; of its template, ours in the guarded child.

    It has as much of transformers' tokenizers as `chat` and `serve` use, and any thread may ask.
    Where the file says that every text is opened by a token, a prompt is opened by one, whether or
    not the template writes it: so do llama.cpp's own chats.
    """

    def __init__(self, header: Header, server: Server) -> None:
        self.header, self.server, self.name_or_path = header, server, header.path.name
        self.bos_token_id, self.eos_token_id, self.unk_token_id = map(
            header.special, ("bos", "eos", "unk")
        )
        self.added_tokens_decoder = {
            id: Control(text, special) for id, (text, special) in header.controls().items()
        }
        self.special_tokens_map = {
            f"{name}_token": header.tokens[id]
            for name in ("bos", "eos", "unk", "padding")
            if (id := header.special(name)) is not None
        }

    def __len__(self) -> int:
        return len(self.header.tokens)

    def __deepcopy__(self, memo: Any) -> Tokenizer:
        return self

    def get_vocab(self) -> dict[str, int]:
        return {text: id for id, text in enumerate(self.header.tokens)}

    @cached_property
    def chat_template(self) -> str:
        """The file's, with the token in front that it leaves to llama.cpp; or empty."""
        template = self.header.template
        opening = self.server.tokenize("", add_special=True)
        if not template or not opening:
            return template
        (text,) = self._render(template, [PROBE], add_generation_prompt=True)
        is_written = self.server.tokenize(text)[:1] == opening[:1]
        return template if is_written else "{{ bos_token }}" + template

    def get_chat_template(self) -> str:
        return self.chat_template

    def apply_chat_template(
        self,
        conversations: Sequence[Sequence[Mapping[str, str]]],
        tokenize: bool,
        add_generation_prompt: bool,
    ) -> list[str]:
        assert not tokenize
        return self._render(self.chat_template, conversations, add_generation_prompt)

    def _render(
        self,
        template: str,
        conversations: Sequence[Sequence[Mapping[str, str]]],
        add_generation_prompt: bool,
    ) -> list[str]:
        where, special = str(self.header.path), self.special_tokens_map
        return guard.render(where, template, conversations, special, add_generation_prompt)

    def __call__(
        self, text: str | Sequence[str], add_special_tokens: bool = True, **_: Any
    ) -> dict[str, Any]:
        if isinstance(text, str):
            return {"input_ids": self.server.tokenize(text, add_special_tokens)}
        return {"input_ids": [self.server.tokenize(part, add_special_tokens) for part in text]}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return self.server.detokenize(ids)
