"""What clients send becomes token ids, in a thread of its own: a long text takes a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from limbeck import chat
from limbeck.errors import UserError
from limbeck.serve.loop import Engine
from limbeck.serve.refusal import Refusal
from limbeck.types import Message

Result = TypeVar("Result")


@dataclass(frozen=True)
class Prompt:
    """Token ids that the model continues; `opened` is the thinking tag that they end with."""

    ids: tuple[int, ...]
    opened: str = ""


class Prompts:
    """Reads prompts for an engine, with a tokenizer that no other thread uses."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.tokenizer = deepcopy(engine.tokenizer)
        self.num_ids = len(self.tokenizer)
        self.longest = max(map(len, self.tokenizer.get_vocab()), default=1)  # characters a token
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="prompts")

    async def chat(self, messages: Sequence[Message]) -> Prompt:
        """The prompt of a conversation. Refusal where it is too long or the template's error."""
        self._check_chars(sum(len(message.content) for message in messages))
        prompt = await self._read(partial(self._chat, messages))
        return self._fitting(prompt)

    async def texts(self, texts: Sequence[str | Sequence[int]]) -> list[Prompt]:
        """The prompts of plain texts, or of token ids, which are taken as they are."""
        prompts = []
        for text in texts:
            ids: Sequence[int]
            if isinstance(text, str):
                self._check_chars(len(text))
                ids = await self._read(partial(chat.text_ids, self.tokenizer, text))
            else:
                ids = self._known(text)
            prompts.append(self._fitting(Prompt(tuple(ids))))
        return prompts

    async def says(self, prompt: Prompt) -> str:
        """The text of a prompt, special tokens included."""
        ids = list(prompt.ids)
        read = partial(self.tokenizer.decode, ids, skip_special_tokens=False)
        return str(await self._read(read))

    def _chat(self, messages: Sequence[Message]) -> Prompt:
        opened = chat.opened_thinking(chat.render_prompt(self.tokenizer, messages))
        return Prompt(tuple(chat.prompt_ids(self.tokenizer, messages)), opened)

    async def _read(self, read: Callable[[], Result]) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, read)
        except UserError as error:
            raise Refusal(400, f"the tokenizer: {error.what}", "messages") from error

    def _known(self, ids: Sequence[int]) -> Sequence[int]:
        if max(ids) >= self.num_ids:
            raise Refusal(400, f"token ids are below {self.num_ids}", "prompt")
        return ids

    def _check_chars(self, num: int) -> None:
        """Spares us to tokenize what cannot fit."""
        if num > self.longest * self.engine.context:
            raise self._too_long(f"{num} characters")

    def _fitting(self, prompt: Prompt) -> Prompt:
        if not prompt.ids:
            raise Refusal(400, "the prompt is empty", "prompt")
        if len(prompt.ids) >= self.engine.context:
            raise self._too_long(f"{len(prompt.ids)} tokens")
        return prompt

    def _too_long(self, length: str) -> Refusal:
        limit = f"the model's context is {self.engine.context} tokens, the answer included"
        return Refusal(400, f"the prompt has {length}; {limit}", "messages")
