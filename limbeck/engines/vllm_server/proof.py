"""Proof that a server has the model that is wanted, its template, and log-probabilities to use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck import chat, guard
from limbeck.engines.local import signature
from limbeck.engines.vllm_server.server import Server, hub_name, refuse_old
from limbeck.errors import UserError
from limbeck.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CUT_OFF = -9999.0  # how a server says minus infinity, which JSON lacks
PROBES = (
    (Message("user", "What is 1 + 1?"),),
    (Message("user", " Añ 1\n\n?"), Message("assistant", "2."), Message("user", "and 2 × 3 ?")),
)


@dataclass(frozen=True)
class Proved:
    """What is known of a server's model, which it calls `name`.

    `context` is how many tokens prompt and text may have together; `opened` the thinking tag that
    the template writes at a prompt's end. Of a folder there are `num_parameters`, and as `ends`
    what ends a turn, which may be another token than the end of a sequence that the server knows.
    """

    name: str
    context: int
    opened: str
    num_parameters: int | None = None
    ends: tuple[int, ...] = ()


def prove(server: Server, model: str, extra: Mapping[str, Any]) -> Proved:
    """UserError unless the server is new enough and has this model and its template.

    Its small questions are sent with the `extra` that all requests have.
    """
    refuse_old(server)
    card = card_of(server, model)
    answers = ask_probes(server, {**extra, "model": card["id"]})
    refuse_raw_logprobs(server, answers)
    opened = chat.opened_thinking(answers[0].get("prompt_text") or "")
    if not Path(model).is_dir():
        return Proved(card["id"], card["max_model_len"], opened)
    from limbeck import models

    tokenizer = models.load_tokenizer(model)
    refuse_other_template(server, model, tokenizer, answers)
    size, ends = guard.num_elements(Path(model)), (chat.end_of_turn(tokenizer),)
    return Proved(card["id"], card["max_model_len"], opened, size, ends)


def card_of(server: Server, model: str) -> dict[str, Any]:
    """The server's card of this model. UserError that names what it serves instead."""
    cards: list[dict[str, Any]] = server.get("/v1/models", "check base_url and the key")["data"]
    for card in cards:
        if _is_model(card, model):
            return card
    names = ", ".join(str(card["id"]) for card in cards)
    way_out = "name the model that is served, or serve this one"
    raise UserError(server.where, f"serves {names}, not {model}", way_out)


def _is_model(card: Mapping[str, Any], model: str) -> bool:
    """Whether a card is that of the folder or the hub model; folders of one name may differ."""
    root = Path(str(card.get("root")))
    if Path(model).is_dir() and root.is_dir():
        return root.samefile(model)
    names = (model, hub_name(model)[0], signature(model))
    return card["id"] in names or card.get("root") in names


def ask_probes(server: Server, extra: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The answers to small questions: a token, its two likeliest, and the prompts as read."""
    small = {"max_tokens": 1, "temperature": 1.0, "top_k": 1, "logprobs": True, "top_logprobs": 2}
    way_out = "serve a model with a chat template; the server's log says more"
    answers = []
    for probe in PROBES:
        messages = [{"role": m.role, "content": m.content} for m in probe]
        body = {**extra, **small, "messages": messages, "return_prompt_text": True}
        answers.append(server.post("/v1/chat/completions", body, way_out))
    return answers


def refuse_raw_logprobs(server: Server, answers: Sequence[Mapping[str, Any]]) -> None:
    """UserError where log-probabilities are not of the distribution that was drawn from.

    In that, with top_k = 1, no token but the first has any probability.
    """
    first = answers[0]["choices"][0]["logprobs"]["content"][0]
    if any(other["logprob"] > CUT_OFF for other in first["top_logprobs"][1:]):
        what = "its log-probabilities are those before temperature, top-p and top-k"
        way_out = "start it with --logprobs-mode processed_logprobs, or use the openai engine"
        raise UserError(server.where, what, way_out)


def refuse_other_template(
    server: Server,
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    answers: Sequence[Mapping[str, Any]],
) -> None:
    """UserError where the server reads a conversation as other tokens than the model's folder."""
    for probe, answer in zip(PROBES, answers, strict=True):
        if answer["prompt_token_ids"] != chat.prompt_ids(tokenizer, probe):
            what = f"its chat template or tokenizer is not that of {model}"
            way_out = "serve the folder as it is, without --chat-template and --tokenizer"
            raise UserError(server.where, what, way_out)
