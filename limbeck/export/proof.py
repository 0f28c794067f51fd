"""Proves that llama.cpp makes of a GGUF file what we make of the model that it was written from.

The same text of a conversation, the same tokens of a text, the same special tokens, and nearly the
same next token: what is left of a difference is the price of the file's type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from limbeck import chat
from limbeck.errors import UserError
from limbeck.export import gguf, llama, rounding, splitting, trials
from limbeck.export.vocabulary import Vocabulary
from limbeck.guard.worker import TooMuch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NUM_TOKENS = 8  # of a greedy answer that are looked at
NUM_PROBS = 1024  # tokens of a large vocabulary that are told apart, the rest is one
NUM_PROMPTS = 20
NUM_DRAWN = 500  # texts of tokens in a row, drawn from the vocabulary
# Of these llama.cpp may read a few otherwise: for words like "уЩx" its `tekken` and `gpt-4o` only
# know the case of a to z, in 1 of 300 measured. Of all other splittings it reads every one alike.
MIN_DRAWN = 0.98
CONTEXT = 2048
LIMIT_S, S_PER_GB = 600.0, 300.0  # a file of 1 GB took 50 s on one thread; a busy one may stretch
BOUNDS = (  # in words, beside the figures, for who reads them alone
    "kl_bound is the bound of kl_mean, the mean over positions; kl_max, of the worst position, has "
    "none. greedy_margin is the widest lead of the model's first choice, in nats, where llama.cpp "
    "chose another token; greedy_margin_bound is its bound."
)


@dataclass(frozen=True)
class Bound:
    """How far llama.cpp's next-token distribution may be from another, in nats.

    `kl` is KL(the other || llama.cpp), the mean over places; where the other's first choice leads
    its second by more than `margin`, llama.cpp must choose it, too.
    """

    kl: float
    margin: float


# From the model as it is: the price of the type, which no right file is free of. Measured, at the
# worst of 12 models (miniatures that were trained, on problems of their own and on strange texts,
# and sharpened random ones of all architectures): kl 1e-6, 1e-6, 2e-4, 2e-3, 0.06, 0.22; margin 0,
# 0, 0.06, 0.28, 2.4, 5.5, where a miniature reads what it has never seen; on its own problems it is
# not once apart. SmolLM2-135M-Instruct, which had 4 bits a weight before: kl 1e-11, 4e-6, 2e-4,
# 4e-3 (9.9e-3 when pruned to 2:4 and recovered), 0.17, 0.36; margin 0, 0, 0.02, 0.2, 1.5, 3.3.
OF_MODEL = {
    "f32": Bound(1e-5, 0.01),
    "f16": Bound(1e-4, 0.05),
    "bf16": Bound(2e-3, 0.3),
    "q8_0": Bound(1e-2, 1.0),
    **dict.fromkeys(("q5_1", "q5_0"), Bound(0.2, 5.0)),
    **dict.fromkeys(("q4_1", "q4_0"), Bound(0.7, 10.0)),
}


# From the model with the very weights that the file holds. A wrong file is nats away; what is left
# of a right one is how llama.cpp rounds what goes into a matrix product, which moves a model the
# more, the deeper it is. So the bound is ROOM times what the same rounding does to our own model at
# the same places, and what sums in another order can do. llama.cpp was 0.87 to 1.12 times as far as
# that rounding, of every type, for miniatures of four architectures as for SmolLM2-135M-Instruct.
ROOM = 2.0
LEAST = Bound(1e-6, 0.01)


@dataclass(frozen=True)
class Place:
    """One place of a greedy answer: `margin` is by how much our first choice leads."""

    kl: float
    margin: float
    agrees: bool


def prove(
    path: Path,
    kind: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    talks: Sequence[trials.Turns],
    log: Callable[[str], None],
) -> dict[str, Any]:
    """All figures of the proof; UserError with the first thing that is not equal.

    `talks` are conversations that the model's chat template takes. Behind the proof the model has
    the weights of the file.
    """
    texts = chat.render_prompts(tokenizer, talks)
    where = f"export {kind}.gguf"
    limit_s = LIMIT_S + S_PER_GB * path.stat().st_size / 1e9
    longest = min(CONTEXT, model.config.max_position_embeddings)
    with llama.loaded(path, where, longest, limit_s) as server:
        found: dict[str, Any] = {"type": kind, "bounds": BOUNDS}
        found["templates"] = _same_texts(server, where, talks, texts, vocabulary, tokenizer)
        hard = [*texts, *trials.texts(tokenizer)]
        found["texts"] = _same_tokens(server, where, hard, tokenizer)
        found["drawn_texts"] = _same_drawn(server, where, tokenizer)
        found["special_tokens"] = _same_special(server, where, tokenizer, vocabulary)
        prompts = [chat.prompt_ids(tokenizer, talk) for talk in talks]
        prompts = [ids for ids in prompts if len(ids) + NUM_TOKENS <= longest]
        num_probs = min(NUM_PROBS, len(vocabulary.tokens))
        plain, end = _plain(tokenizer), vocabulary.special["eot"]
        answers = server.greedy(prompts, NUM_TOKENS, num_probs, plain, end)
    found["prompts"] = len(prompts)
    found["model"] = judged(where, "model", OF_MODEL[kind], compare(model, prompts, answers))
    gguf.round_weights(model, kind)
    found["file"] = judged(where, "file", *compare_file(model, kind, prompts, answers))
    by, of = found["model"], found["file"]
    log(
        f"{kind}: {found['templates']} conversations are written alike, {found['texts']} texts read"
    )
    log(
        f"{kind}: {by['kl_mean']:.1e} nats from the model in the mean (bound {by['kl_bound']:g}), "
        f"{of['kl_mean']:.1e} from its own weights (bound {of['kl_bound']:.2g}); greedy tokens "
        f"equal in {by['greedy_equal']} of {by['positions']} places"
    )
    return found


def taken(tokenizer: PreTrainedTokenizerBase, talks: Sequence[trials.Turns]) -> list[trials.Turns]:
    """The conversations that the template takes: some have no system turn."""
    found = []
    for talk in talks:
        try:
            chat.render_prompt(tokenizer, talk)
        except TooMuch:  # of which llama.cpp would render it without any limit
            raise
        except Exception:  # a template's own words for a conversation that it does not know
            continue
        found.append(talk)
    if len(found) < NUM_PROMPTS:
        what = f"its chat template takes {len(found)} of {len(talks)} plain conversations"
        raise UserError(f"tokenizer {tokenizer.name_or_path}", what, "mend its template")
    return found


def _same_texts(
    server: llama.Llama,
    where: str,
    talks: Sequence[trials.Turns],
    texts: Sequence[str],
    vocabulary: Vocabulary,
    tokenizer: PreTrainedTokenizerBase,
) -> int:
    """How many conversations are written alike; where llama.cpp opens each text itself, it leaves
    the opening token out here."""
    turns = [[{"role": m.role, "content": m.content} for m in talk] for talk in talks]
    opening = str(tokenizer.bos_token) if vocabulary.adds_bos else ""
    wanted = [text.removeprefix(opening) for text in texts]
    for talk, want, got in zip(talks, wanted, server.render(turns), strict=True):
        if want != got:
            what = f"writes {talk[-1].content[:40]!r} as {got[:200]!r}, not as {want[:200]!r}"
            raise _unequal(where, what, "mend the chat template, and see jinja's features it uses")
    return len(talks)


def _same_tokens(
    server: llama.Llama, where: str, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> int:
    """How many texts have the same tokens, and come back from them."""
    texts = [text for text in dict.fromkeys(texts) if text]
    wanted: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for text, want, got in zip(texts, wanted, server.tokenize(texts), strict=True):
        if want != got:
            place = next((i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a != b), -1)
            ours, theirs = (tokenizer.decode(ids[place : place + 3]) for ids in (want, got))
            what = f"reads {text[:200]!r} as …{theirs!r}, not …{ours!r}"
            way_out = "no added token may begin within another that is not longer"
            raise _unequal(where, what, way_out)
    for ids, text in zip(wanted, server.detokenize(wanted), strict=True):
        if (back := tokenizer.decode(ids)) != text:
            raise _unequal(where, f"writes {back[:200]!r} as {text[:200]!r}", "take --to hf")
    return len(texts)


def _same_drawn(
    server: llama.Llama, where: str, tokenizer: PreTrainedTokenizerBase
) -> dict[str, int]:
    """How many texts of tokens thrown together are read alike, which nearly all must be."""
    texts = [text for text in splitting.trials(tokenizer, NUM_DRAWN) if text]
    wanted: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    read = server.tokenize(texts)
    other = [text for text, a, b in zip(texts, wanted, read, strict=True) if a != b]
    if len(other) > (1.0 - MIN_DRAWN) * len(texts):
        what = f"reads {len(other)} of {len(texts)} texts otherwise, {other[0]!r} for instance"
        raise _unequal(where, what, "take --to hf")
    return {"equal": len(texts) - len(other), "of": len(texts)}


def _same_special(
    server: llama.Llama,
    where: str,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
) -> dict[str, int]:
    """Beginning and end are the same, control tokens are one token, and a turn's end is an end."""
    told = server.special()
    for name in ("bos", "eos"):
        want = tokenizer.decode([vocabulary.special[name]])
        if told[name] != want:
            raise _unequal(where, f"has {told[name]!r} as {name}, not {want!r}", "take --to hf")
    controls = {id: t.content for id, t in tokenizer.added_tokens_decoder.items()}
    for id, got in zip(controls, server.tokenize([*controls.values()]), strict=True):
        if got != [id]:
            raise _unequal(where, f"reads {controls[id]!r} as {got}, not {[id]}", "take --to hf")
    end = vocabulary.special["eot"]
    if not server.stops_at(end):
        what = f"does not stop at {controls.get(end, end)!r}, which ends a turn"
        raise _unequal(where, what, "take --to hf")
    return vocabulary.special


def _plain(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token that is a whole letter."""
    ids: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    return ids[0]


def compare(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[llama.Step]],
) -> list[Place]:
    """The model's distribution before each token of llama.cpp's answers, beside its own."""
    places = []
    for prompt, answer in zip(prompts, answers, strict=True):
        places += _places(_next_tokens(model, prompt, answer), answer)
    return places


def compare_file(
    model: PreTrainedModel,
    kind: str,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[llama.Step]],
) -> tuple[Bound, list[Place]]:
    """The same of a model with the file's weights, and how far a right file may be from it."""
    kl, shifts, places = [], [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        exact = _next_tokens(model, prompt, answer)
        with rounding.inputs_rounded(model, kind):
            rounded = _next_tokens(model, prompt, answer)
        places += _places(exact, answer)
        kl += (exact.exp() * (exact - rounded)).sum(-1).tolist()
        leaders = exact.topk(2).indices
        shift = (exact - rounded).gather(-1, leaders).diff()  # of the first choice's lead
        shifts.append(float(shift.abs().max()))
    return Bound(LEAST.kl + ROOM * fmean(kl), LEAST.margin + ROOM * max(shifts)), places


def _places(ours: Tensor, answer: Sequence[llama.Step]) -> list[Place]:
    return [_place(row, step) for row, step in zip(ours, answer, strict=True)]


def _next_tokens(
    model: PreTrainedModel, prompt: Sequence[int], answer: Sequence[llama.Step]
) -> Tensor:
    """The model's log-probs (N, V) before each token of an answer, float64."""
    import torch

    ids = [*prompt, *(step[0][0] for step in answer)]
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits = model(torch.tensor([ids[:-1]], device=device)).logits[0, len(prompt) - 1 :]
        return logits.double().log_softmax(-1).cpu()


def _place(ours: Tensor, theirs: llama.Step) -> Place:
    """What they leave out of a large vocabulary counts as one token.

    They add up probabilities in float32, one after the other, so that all of theirs may be too
    large or too small by one factor: what that can explain is no difference.
    """
    import torch

    first, second = ours.topk(2).values.tolist()
    ids, told = zip(*theirs, strict=True)
    known, their_known = ours[list(ids)], torch.tensor(told, dtype=torch.float64)
    mass, their_mass = (float(p.exp().sum()) for p in (known, their_known))
    slack = len(ours) * 2.0**-24
    factor = min(max(mass / their_mass, 1.0 - slack), 1.0 + slack)
    kl = float((known.exp() * (known - their_known - math.log(factor))).sum())
    rest, their_rest = 1.0 - mass, 1.0 - factor * their_mass
    if len(ids) < len(ours) and min(rest, their_rest) > 0.0:
        kl += rest * math.log(rest / their_rest)
    return Place(max(kl, 0.0), first - second, int(ours.argmax()) == ids[0])


def judged(where: str, of: str, bound: Bound, places: Sequence[Place]) -> dict[str, Any]:
    """The figures; UserError where they are beyond the bound of the `model`, or of the `file`."""
    whose, way_out = {
        "model": ("the model", "take a finer --quant"),
        "file": ("what the file's own weights say", "take --to hf"),
    }[of]
    apart = max((place.margin for place in places if not place.agrees), default=0.0)
    mean = fmean(place.kl for place in places)
    if not mean <= bound.kl:
        what = f"is {mean:.2g} nats from {whose} (bound {bound.kl:.2g})"
        raise _unequal(where, what, way_out)
    if apart > bound.margin:
        what = f"chooses another token where that of {whose} leads by {apart:.2g} nats"
        raise _unequal(where, f"{what} (bound {bound.margin:.2g})", way_out)
    return {
        "positions": len(places),
        "kl_mean": mean,
        "kl_bound": bound.kl,
        "kl_max": max(place.kl for place in places),
        "greedy_equal": sum(place.agrees for place in places),
        "greedy_margin": apart,
        "greedy_margin_bound": bound.margin,
    }


def _unequal(where: str, what: str, way_out: str) -> UserError:
    return UserError(where, f"llama.cpp {what}; nothing is kept", way_out)
