"""What an export is tried on: conversations of many kinds, and texts that are hard to tokenize."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from limbeck.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_OVERLAPS = 200
NUM_AROUND = 100
SPACES = ("", " ", "  ", "\n", "\n\n", "\t", " \n ")

Turns = tuple[Message, ...]

QUESTIONS = (
    "What is 12 + 345?",
    "Compute 3 - 17 * 4.  Give only the number.",
    "Spell this word backward (example: sun -> nus): lantern",
    "How many legs are there in total if you have 3 cows, 2 spiders and 1 duck?",
    "Is the following review positive or negative?\n\nA gorgeous, witty, seductive movie.",
    "Écris-moi une phrase sur l'été à Zürich, s'il te plaît.",
    "请用中文回答：三加五等于多少？",
    "日本の首都はどこですか。カタカナでも書いてください。",
    "Сколько будет 17 умножить на 23?",
    "كم يساوي ١٢ زائد ٣٤؟",
    "🙂👩‍👩‍👧 What do these emoji show? 🇨🇭",
    "def f(x):\n\treturn [i ** 2 for i in range(x) if i % 2]\n\nWhat does f(5) return?",
    '#include <stdio.h>\nint main(void) { printf("%d\\n", 1 << 4); }\n// what is printed?',
    "Solve $\\frac{x^2 - 1}{x + 1} = 7$ and put the answer into \\boxed{}.",
    "SELECT name, COUNT(*) FROM t WHERE a >= 10 GROUP BY name HAVING COUNT(*) > 3;",
    "It's what they'd've said; I'm sure we'll see. DON'T SHOUT!",
    "1234567 + 7654321 = ?\n\n\n   - one\n   - two\n",
    "   Leading and trailing white space   ",
    "{{ not a template }} {% nor this %}",
    "Tabs\there\tand\r\nWindows' line ends\r\n",
    "https://example.org/a_b?c=d&e=%20f#g",
)


def conversations(asked: Iterable[Sequence[Message]] = ()) -> list[Turns]:
    """Those that are given, then ours: single questions, several turns, system and thinking."""
    user, assistant, system = (
        lambda text, role=role: Message(role, text) for role in ("user", "assistant", "system")
    )
    thought = "<think>\n12 and 5 make 17.\n</think>\n\nIt is 17."
    own: list[Turns] = [(user(question),) for question in QUESTIONS]
    own += [
        (system("You are terse."), user("What is 2 + 2?")),
        (user("Hello!"), assistant("Hello. What can I do?"), user("Add 2 and 3.")),
        (user("What is 12 + 5?"), assistant(thought), user("And twice that?")),
        (
            system("Answer with a number."),
            user("1 + 1?"),
            assistant("2"),
            user("3 + 4?"),
            assistant("7"),
            user("5 + 6?"),
        ),
    ]
    return [*map(tuple, asked), *own]


def texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Our questions as they are, and added tokens within white space and within one another."""
    return [*QUESTIONS, *_around(tokenizer), *_overlapping(tokenizer)]


def _added(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items())]


def _around(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Added tokens after and before white space and letters."""
    rng, added = random.Random(0), _added(tokenizer)
    for _ in range(NUM_AROUND if added else 0):
        pieces = (rng.choice(SPACES), rng.choice(added), rng.choice(SPACES), rng.choice(added))
        yield f"a{''.join(pieces)}{rng.choice(SPACES)}b"


def _overlapping(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Texts in which one added token begins within another.

    transformers takes the one that begins first, llama.cpp the longest: they agree where, of two
    that overlap, the first is the longer.
    """
    added = _added(tokenizer)
    begins: dict[str, list[str]] = {}
    for text in added:
        for cut in range(1, len(text)):
            begins.setdefault(text[:cut], []).append(text)
    found = 0
    for first in added:
        for cut in range(1, len(first)):
            for second in begins.get(first[cut:], ()):
                if len(second.encode()) >= len(first.encode()) and second != first:
                    yield first[:cut] + second
                    found += 1
                    if found == MAX_OVERLAPS:
                        return
