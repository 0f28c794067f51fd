"""Chat templates, thinking tags and end-of-turn tokens: the only place that knows them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING

from limbeck import guard
from limbeck.errors import UserError
from limbeck.types import Message

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerBase

OPEN = "<think>"
CLOSE = "</think>"
MARK = "\ufdd0"  # Unicode promises that it never becomes a character
BRACKETED = re.compile(r"[<\[{].+[>\]}]$", re.DOTALL)

# What DeepSeek-R1-Zero is told before each question (https://arxiv.org/abs/2501.12948, Table 1):
# what an answer looks like, and nothing about how to reason.
R1_ZERO_PREFACE = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves "
    "it. The assistant first thinks about the reasoning process in the mind and then provides the "
    "user with the answer. The reasoning process and answer are enclosed within <think> </think> "
    "and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> "
    "<answer> answer here </answer>."
)
# As a chat template: plain text, no token of its own but the end of sequence behind an answer.
R1_ZERO_TEMPLATE = (
    R1_ZERO_PREFACE
    + """\
{% for message in messages %}
{% if message.role == 'user' %}{{ ' User: ' + message.content + '. Assistant:' }}
{%- elif message.role == 'assistant' %}{{ message.content + eos_token }}
{%- else %}{{ ' ' + message.content }}{% endif %}{% endfor %}"""
)
guard.trust_template(R1_ZERO_TEMPLATE)


@dataclass(frozen=True)
class Thought:
    """A text taken apart. `answer` is None when its thinking was never finished."""

    thinking: str | None
    answer: str | None


def split_think(text: str) -> Thought:
    """Only what follows the last `</think>` is the answer; without tags all of it is.

    A tag that opens again after it means unfinished thinking, hence no answer.
    """
    before, close, after = text.rpartition(CLOSE)
    if OPEN in after:
        return Thought(_without_open(text), None)
    if close:
        return Thought(_without_open(before), after)
    return Thought(None, text)


def _without_open(text: str) -> str:
    """The text from behind its opening tag on; all of it when the template had written the tag."""
    return text.partition(OPEN)[2] if OPEN in text else text


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """The text that the model continues, by the tokenizer's own chat template."""
    return render_prompts(tokenizer, [messages])[0]


def render_prompts(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]
) -> list[str]:
    """`render_prompt` for many."""
    _require_template(tokenizer)
    if not conversations:
        return []
    plain = [[_plain(message) for message in messages] for messages in conversations]
    return _render(tokenizer, plain, add_generation_prompt=True)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """The tokens of the rendered prompt; control tokens are those that the template wrote.

    What looks like one in a message is tokenized as the text it is; only an assistant's turn keeps
    its thinking tags and other markers that are not special.
    """
    return _marked_ids(tokenizer, _render_marked(tokenizer, [messages]))[0]


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a plain text; none is a control token but the one that opens every text."""
    empty = tokenizer("")["input_ids"]
    begin = empty[:1] if empty and empty[0] == tokenizer.bos_token_id else []
    return begin + _marked_ids(tokenizer, [_marked(text, _controls(tokenizer))])[0]


def opened_thinking(prompt: str) -> str:
    """The `<think>` that the template wrote at the prompt's end, with the white space behind it.

    Empty when there is none. A trace's text begins with it, though the model never wrote it.
    """
    begin = prompt.rfind(OPEN)
    is_last = begin >= 0 and not prompt[begin + len(OPEN) :].strip()
    return prompt[begin:] if is_last else ""


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an assistant's turn.

    It is the first special token that the chat template writes behind an assistant's message,
    else the tokenizer's end-of-sequence token. UserError when there is neither.
    """
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    behind = _tokenize(tokenizer, [_behind_assistant(tokenizer)])[0]
    for token in behind:
        if token in special:
            return token
    if tokenizer.eos_token_id is not None:
        return tokenizer.eos_token_id
    raise UserError(
        f"tokenizer {tokenizer.name_or_path}",
        "its chat template ends no assistant turn and it has no end-of-sequence token",
        "set eos_token, or write the ending token in the chat template",
    )


def _behind_assistant(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template writes behind an assistant's content."""
    _require_template(tokenizer)
    mark = "limbeck42"
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": mark}]
    text = _render(tokenizer, [turns], add_generation_prompt=False)[0]
    return text.rpartition(mark)[2] if mark in text else ""


def encode_example(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], completion_text: str
) -> tuple[list[int], list[int]]:
    """(ids, loss mask) of a prompt and its completion; see `encode_examples`."""
    return encode_examples(tokenizer, [(messages, completion_text)])[0]


def encode_examples(
    tokenizer: PreTrainedTokenizerBase, pairs: Iterable[tuple[Sequence[Message], str]]
) -> list[tuple[list[int], list[int]]]:
    """(ids, loss mask) for pairs of a prompt and the whole text that should follow it.

    The prompt's tokens are exactly those of `prompt_ids`, mask 0; then the completion's and the
    end-of-turn token, mask 1. A `<think>` that the prompt has already opened is not repeated; what
    looks like another control token in a text is learned as the text it is.
    """
    pairs = list(pairs)
    prompts = _render_marked(tokenizer, [messages for messages, _ in pairs])
    end, controls = end_of_turn(tokenizer), _controls(tokenizer, of_assistant=True)
    ending = _decode(tokenizer, [end])
    completions = [
        _marked(_continuation(prompt, text).removesuffix(ending), controls)
        for prompt, (_, text) in zip(prompts, pairs, strict=True)
    ]
    examples = []
    encoded = (_marked_ids(tokenizer, texts) for texts in (prompts, completions))
    for prompt, written in zip(*encoded, strict=True):
        completion = [*written, end]
        examples.append((prompt + completion, [0] * len(prompt) + [1] * len(completion)))
    return examples


def _continuation(prompt: str, text: str) -> str:
    """The part of a whole text that the model itself writes after this prompt."""
    opened = opened_thinking(prompt)
    if opened and text.startswith(opened):
        return text[len(opened) :]
    return text.removeprefix(OPEN) if opened else text


def preflight(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], mask: Sequence[int]) -> str:
    """Proves on one example that the model will learn to stop and to close its thinking.

    Gives the example as text, what is trained between ⟦ and ⟧. UserError when nothing is trained,
    when the last trained token does not end the turn, or when the thinking is outside the loss.
    """
    assert len(ids) == len(mask)
    trained = [token for token, kept in zip(ids, mask, strict=True) if kept]
    masked = [token for token, kept in zip(ids, mask, strict=True) if not kept]
    where = f"tokenizer {tokenizer.name_or_path}"
    if not trained:
        raise UserError(
            where, "no token of the example is inside the loss", "check its completion and mask"
        )
    end = end_of_turn(tokenizer)
    end_text = _decode(tokenizer, [end])
    if trained[-1] != end or not mask[-1]:
        raise UserError(
            where,
            f"the end-of-turn token {end_text!r} is outside the loss, so the model would never "
            "learn to stop",
            "mask only the prompt",
        )
    asked = _decode(tokenizer, masked).replace(R1_ZERO_PREFACE, "")  # which speaks of the tags
    masked_thinking = split_think(asked).thinking or ""
    if masked_thinking.strip() and CLOSE not in _decode(tokenizer, trained):
        raise UserError(
            where,
            f"{CLOSE} is outside the loss, so the model would never learn to finish thinking",
            "mask only the prompt",
        )
    return "\n".join(
        [
            f"prompt {len(masked)} tokens, trained {len(trained)}, end of turn {end_text!r}",
            _padding_note(tokenizer, end),
            _bracketed(tokenizer, ids, mask),
        ]
    )


def _padding_note(tokenizer: PreTrainedTokenizerBase, end: int) -> str:
    if tokenizer.pad_token_id == end:
        return (
            "padding token = end of turn: safe here, the loss is masked by position, never by token"
        )
    return f"padding token {tokenizer.pad_token!r}"


def _bracketed(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], mask: Sequence[int]) -> str:
    pieces, begin = [], 0
    for stop in range(1, len(ids) + 1):
        if stop == len(ids) or mask[stop] != mask[begin]:
            text = _decode(tokenizer, ids[begin:stop])
            pieces.append(f"⟦{text}⟧" if mask[begin] else text)
            begin = stop
    return "".join(pieces)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids)))


def _plain(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}


def _render_marked(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]
) -> list[str]:
    """Rendered prompts with a mark inside whatever in their messages looks like a control token."""
    own, others = _controls(tokenizer, of_assistant=True), _controls(tokenizer)
    marked = [
        [
            replace(m, content=_marked(m.content, own if m.role == "assistant" else others))
            for m in messages
        ]
        for messages in conversations
    ]
    return render_prompts(tokenizer, marked)


def _controls(tokenizer: PreTrainedTokenizerBase, of_assistant: bool = False) -> list[str]:
    """Texts that become a control token wherever they stand, the longest first.

    Those are special tokens and added ones in brackets, but not the words that a vocabulary was
    extended by. An assistant's turn may hold the latter kind and the tags of its thinking.
    """
    found = [
        token.content
        for token in _control_tokens(tokenizer).values()
        if not of_assistant or (token.special and token.content not in (OPEN, CLOSE))
    ]
    return sorted(found, key=len, reverse=True)


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, AddedToken]:
    added = tokenizer.added_tokens_decoder.items()
    return {id: token for id, token in added if token.special or BRACKETED.match(token.content)}


def _marked(content: str, controls: Sequence[str]) -> str:
    """The content with a mark behind the first character of every control text in it."""
    content = content.replace(MARK, "")
    for text in controls:
        while len(text) > 1 and text in content:  # again, as one may overlap with itself
            content = content.replace(text, text[0] + MARK + text[1:])
    return content


def _marked_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts that are tokenized apart at their marks, which are no part of them."""
    parts = [text.split(MARK) for text in texts]
    encoded = iter(_tokenize(tokenizer, [part for split in parts for part in split]))
    ids = [list(chain.from_iterable(islice(encoded, len(split)))) for split in parts]
    controls = {id: token.content for id, token in _control_tokens(tokenizer).items()}
    if tokenizer.unk_token_id is not None:  # stands for whatever the vocabulary lacks
        controls.pop(tokenizer.unk_token_id, None)
    for split, tokens in zip(parts, ids, strict=True):
        for id, count in Counter(id for id in tokens if id in controls).items():
            if count > sum(part.count(controls[id]) for part in split):
                raise _hidden_control(tokenizer, controls[id])
    return ids


def _hidden_control(tokenizer: PreTrainedTokenizerBase, control: str) -> UserError:
    """Some tokenizers look for control tokens only when they have changed the text's letters."""
    what = f"a message has letters that it reads as the control token {control!r}"
    return UserError(f"tokenizer {tokenizer.name_or_path}", what, "write the message otherwise")


def _require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path}",
            "it has no chat template",
            "take the instruction-tuned model's tokenizer, or add a chat_template.jinja",
        )


def _render(
    tokenizer: PreTrainedTokenizerBase,
    conversations: list[list[dict[str, str]]],
    add_generation_prompt: bool,
) -> list[str]:
    """What `apply_chat_template` gives; a stranger's template runs in a child process."""
    template = tokenizer.get_chat_template()
    if not guard.is_trusted(template):
        where = f"tokenizer {tokenizer.name_or_path}"
        special = tokenizer.special_tokens_map
        return guard.render(where, template, conversations, special, add_generation_prompt)
    texts = tokenizer.apply_chat_template(
        conversations, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    return list(map(str, texts))


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return encoded["input_ids"]
