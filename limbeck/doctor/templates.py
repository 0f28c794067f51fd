"""The chat template: what is asked, what is learned, and where a model stops; all tried out."""

from __future__ import annotations

import re
from collections.abc import Iterator

from limbeck import chat
from limbeck.doctor.finding import Said, broken, fine, worth_knowing
from limbeck.doctor.model import Model, read_jinja, stops_of
from limbeck.rewards import rules
from limbeck.types import Message, Problem, Trace, Verdict

QUESTION, ANSWER = "limbeck41 + 1 =?", "limbeck42"  # words that no template writes
ASKED = [Message("user", QUESTION)]
REPLIED = [*ASKED, Message("assistant", ANSWER)]
WRITTEN = f"<think>It is one more.</think>\n{ANSWER}"
CONTROL = re.compile(r"<[|｜][^<>\s]{1,40}[|｜]>")
TAGS = re.compile(r"</?think>|\s")


def chat_template(model: Model) -> Iterator[Said]:
    """There is one, and the places where one may lie agree."""
    settings = model.settings.get("chat_template")
    jinja = read_jinja(model.folder)
    if not model.tokenizer.chat_template:
        way_out = "add the chat_template.jinja of the instruction-tuned model, or a stage `adopt`"
        yield broken("there is none, so nobody can ask the model anything", way_out)
    elif isinstance(settings, str) and jinja is not None and settings.strip() != jinja.strip():
        told = "tokenizer_config.json has another than chat_template.jinja"
        way_out = "keep chat_template.jinja and drop the other"
        yield broken(f"{told}: programs differ in which they read", way_out)
    else:
        yield fine("one, the same wherever it is read")


def question(model: Model) -> Iterator[Said]:
    if QUESTION in chat.render_prompt(model.tokenizer, ASKED):
        yield fine("what is asked stands in the prompt")
    else:
        told = "the prompt does not hold what is asked: the template reads other fields"
        yield broken(told, "let it write message.role and message.content")


def end_of_turn(model: Model) -> Iterator[Said]:
    """Renders a training example; its end and `</think>` have to be among what is learned."""
    ids, mask = chat.encode_example(model.tokenizer, ASKED, WRITTEN)
    chat.preflight(model.tokenizer, ids, mask)
    yield fine(f"{_end(model)!r} and </think> are in the loss")


def _end(model: Model) -> str:
    return str(model.tokenizer.decode([chat.end_of_turn(model.tokenizer)]))


def stopping(model: Model) -> Iterator[Said]:
    """Other engines stop at generation_config.json's tokens: ours must be one of them."""
    end, stops = chat.end_of_turn(model.tokenizer), [*stops_of(model)]
    if end in stops:
        yield fine(f"other engines stop at {_end(model)!r}, too")
        return
    names = ", ".join(map(repr, model.tokenizer.convert_ids_to_tokens(stops))) or "nothing"
    told = f"the template ends a turn with {_end(model)!r}, generation_config.json with {names}"
    way_out = f"set eos_token_id in generation_config.json to {[end, *stops]}"
    yield broken(f"{told}: in other engines the model would never stop", way_out)


def control_tokens(model: Model) -> Iterator[Said]:
    """What looks like a token in a template, but is none, is read letter by letter."""
    written = chat.render_prompt(model.tokenizer, REPLIED)
    split = [text for text in dict.fromkeys(CONTROL.findall(written)) if _num(model, text) > 1]
    ending = CONTROL.match(written.rpartition(ANSWER)[2].lstrip())
    if ending and ending[0] in split:
        told = f"the template ends a turn with {ending[0]}, which is no token of the vocabulary"
        way_out = "take the tokenizer that belongs to the template, or the template to the model"
        yield broken(f"{told}: no engine stops there", way_out)
    elif split:
        told = f"the template writes {', '.join(split)}, which the vocabulary has in pieces"
        yield worth_knowing(told, "see whether template and tokenizer are of one model")
    else:
        yield fine("what the template writes is in the vocabulary")


def _num(model: Model, text: str) -> int:
    return len(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def generation_prompt(model: Model) -> Iterator[Said]:
    """The prompt must be what stands before an answer in a finished conversation."""
    prompt = chat.render_prompt(model.tokenizer, ASKED)
    finished = chat.render_prompt(model.tokenizer, REPLIED)
    before = finished.rpartition(ANSWER)[0]
    if ANSWER not in finished:
        told = "a finished conversation does not hold the answer: earlier turns are lost"
        yield worth_knowing(told, "ask this model in single turns")
    elif TAGS.sub("", before) == TAGS.sub("", prompt):
        yield fine("ends where an answer begins")
    else:
        told = f"ends with {prompt[-20:]!r}, but answers follow {before[-20:]!r}"
        way_out = "let the template write the assistant's header where add_generation_prompt is set"
        yield broken(f"{told}: the model would go on with somebody else's turn", way_out)


def same_prompt(model: Model) -> Iterator[Said]:
    """Training, our engines, and whoever tokenizes the rendered text, token by token."""
    prompt = chat.prompt_ids(model.tokenizer, ASKED)
    learned, _ = chat.encode_example(model.tokenizer, ASKED, WRITTEN)
    text = chat.render_prompt(model.tokenizer, ASKED)
    served = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if learned[: len(prompt)] == prompt == served:
        yield fine(f"{len(prompt)} tokens, the same in training, serving and export")
    else:
        told = "the prompt has other tokens in training than where its text is tokenized"
        yield broken(told, "mend the template, or the tokenizer's added tokens")


def beginning(model: Model) -> Iterator[Said]:
    """The token that opens a text stands there once."""
    begin = model.tokenizer.bos_token_id
    ids, opens = chat.prompt_ids(model.tokenizer, ASKED), model.tokenizer("")["input_ids"][:1]
    if begin is None:
        return
    if ids[:2] == [begin, begin]:
        told = f"the template writes {model.tokenizer.bos_token!r} twice"
        yield broken(f"{told}, which the model has never seen", "drop one of the two from it")
    elif ids[:1] != [begin] and opens == [begin]:
        told = f"the tokenizer opens every text with {model.tokenizer.bos_token!r}, the template"
        yield worth_knowing(f"{told} no prompt", "let the template begin with {{ bos_token }}")
    else:
        yield fine("opened once" if ids[:1] == [begin] else "nothing opens a text")


def thinking_prefill(model: Model) -> Iterator[Said]:
    """Who opens the thinking, and whether a right answer then earns the reward for its format."""
    prompt = chat.render_prompt(model.tokenizer, ASKED)
    tail = prompt.rpartition(QUESTION)[2]
    opened = chat.opened_thinking(prompt)
    if chat.CLOSE in tail and not opened:
        told = "the template closes the thinking before the model can begin"
        way_out = "take the template that leaves it open, if it is to reason"
        yield worth_knowing(f"{told}: its answers hold none", way_out)
        return
    ids, mask = chat.encode_example(model.tokenizer, ASKED, WRITTEN)
    own = [id for id, learned in zip(ids, mask, strict=True) if learned][:-1]
    text = opened + str(model.tokenizer.decode(own))
    if not rules.format(*_answered(text)):
        told = f"a well-formed answer comes back as {text!r}, and earns no reward for its format"
        yield broken(told, "mend the tokens of <think> and </think>")
    else:
        yield fine("the template opens it" if opened else "the model opens it itself")


def _answered(text: str) -> tuple[Problem, Trace, Verdict]:
    problem = Problem("", tuple(ASKED), ANSWER, "exact")
    return problem, Trace("", "", 0, text, "stop", ""), Verdict("", True, ANSWER, "correct")


def kept_reasoning(model: Model) -> Iterator[Said]:
    """Whether the last answer keeps its reasoning where a whole conversation is rendered."""
    replied = [*ASKED, Message("assistant", WRITTEN)]
    if "one more" in chat.render_prompt(model.tokenizer, replied):
        yield fine("the template keeps it")
    else:
        told = "the template drops it from answers: programs that train on whole conversations"
        yield worth_knowing(f"{told} learn none (Limbeck does not)", "train with Limbeck")


def dated_prompt(model: Model) -> Iterator[Said]:
    template = str(model.tokenizer.chat_template)
    if "strftime_now" in template:
        told = "the template writes today's date: tomorrow's numbers are those of another prompt"
        yield worth_knowing(told, "write a fixed date into chat_template.jinja")
