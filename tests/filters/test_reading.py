"""What a reader can follow: paragraphs, code, formulas, and a summary that is faithful."""

from __future__ import annotations

import decimal
import gzip
import json
import os
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck import filters
from limbeck.chat import split_think
from limbeck.filters.reading import undressed
from limbeck.types import Trace, Verdict

DATA = Path(os.environ.get("LIMBECK_TEST_DATA", "/nowhere")) / "reasoning_traces"
RIGHT = Verdict("t", True, "2", "correct")
PARAGRAPH = "We look at the number and see that it is even. "  # 47 characters


def trace(text):
    return Trace("t", "p", 0, text, "stop", "m")


def readable(thinking, summary="So it is even.", **knobs):
    return filters.readable(trace(f"<think>\n{thinking}\n</think>\n\n{summary}"), RIGHT, **knobs)


def faithful(thinking, summary, **knobs):
    return filters.faithful(trace(f"<think>{thinking}</think>{summary}"), RIGHT, **knobs)


def test_long_paragraphs():
    assert readable(PARAGRAPH * 30) is None
    assert readable(PARAGRAPH * 40) == "long_paragraph"
    assert readable(PARAGRAPH * 40, max_paragraph=None) is None
    assert readable(PARAGRAPH * 2, max_paragraph=50) == "long_paragraph"
    assert readable("\n\n".join([PARAGRAPH * 20] * 40)) is None
    assert readable("\n".join(f"- {PARAGRAPH * 2}" for _ in range(40))) is None
    assert readable("\n".join(f"{i}. {PARAGRAPH * 2}" for i in range(40))) is None
    assert readable(f"\n\\[\nx = y\n\\]\n{PARAGRAPH * 20}\n" * 4) is None
    assert readable("\n".join([PARAGRAPH] * 40)) == "long_paragraph"  # lines, but no break
    assert filters.readable(trace(PARAGRAPH * 40), RIGHT) == "long_paragraph"  # without thinking


def test_code_blocks():
    code = "```python\n" + "print(1)\n" * 300 + "```"
    assert readable(f"Let us run it.\n{code}\nSo it is even.") == "code_block"
    assert readable(f"Let us run it.\n{code}\nSo it is even.", code_blocks=True) is None
    assert readable("We write it down.", summary=f"Here it is:\n{code}") is None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (r"Take \[ x = y \] and \( z \).", None),
        (r"Take \[ x = y and so on.", "broken_markup"),
        (r"Take \begin{align} x = y and so on.", "broken_markup"),
        (r"Take $$ x = y and so on.", "broken_markup"),
        (r"\( a \) " * 20 + r"\( b", None),
        (r"\( a \) " * 5 + r"\( b " * 5, "broken_markup"),
        (r"\begin{pmatrix} 1 \\[2pt] 2 \end{pmatrix}", None),
        ("It costs $5, that is all.", None),
    ],
)
def test_formulas_are_closed(text, word):
    assert readable(text) == word
    assert readable("1 2 5 and 2pt", summary=text) == word


@pytest.mark.parametrize(
    ("thinking", "summary", "word"),
    [
        ("12 + 30 = 42", "The sum is 42.", None),
        ("12 + 30 = 42", "The sum is 43.", "unfaithful"),
        ("12 + 30 = 42", "12 + 30 = 42, and 42 * 42 = 1764.", "unfaithful"),
        (r"So \boxed{42}.", r"So \boxed{42}.", None),
        (r"So \boxed{4}.", r"So \boxed{5}.", "unfaithful"),
        (r"So \boxed{-4}.", r"So \boxed{4}.", "unfaithful"),
        (r"So \boxed{A}.", r"So \boxed{B}.", "unfaithful"),
        (r"So \boxed{A}.", r"So \boxed{\text{(A)}}.", None),
        (r"\boxed{3}, no: \boxed{4}", r"\boxed{4}", None),
        (r"\boxed{3}, no: \boxed{4}", r"\boxed{3}", "unfaithful"),
        (r"So \boxed{\dfrac{1}{2}}.", r"So \boxed{1/2}.", None),
        (r"So \boxed{x = 5}.", r"So \boxed{5}.", None),
        ("So the answer is 4.", r"So \boxed{5}.", "unfaithful"),
        ("So the answer is 2 + 2 = 4.", r"So \boxed{4}.", None),
        ("The answer is 3? " + "No, not that. " * 100, r"So \boxed{4}.", None),
        ("5,225 inches", "5225 inches or 5{,}225", None),
        ("x = 3.14159", "x is about 3.14", None),
        ("x = 3.14159", "x is about 3.15", "unfaithful"),
        ("it is 0.1613 of all", "16.13 %", None),
        ("the sets 100 and 200", "(100,200)", None),
        ("all of it", "**Step 11:** x_{12} is all of it.\n13. Nothing more, 100%.", None),
        ("", "All 25 of them.", None),
        ("12 + 30", "```python\nprint(10**9 + 7)\n```", None),
    ],
)
def test_faithful(thinking, summary, word):
    assert faithful(thinking, summary) == word
    assert readable(thinking, summary) == word


def test_new_numbers_may_be_allowed():
    assert faithful("12 + 30 = 42", "And 17.", max_new_numbers=1) is None
    assert faithful("12 + 30 = 42", "And 17 and 18.", max_new_numbers=1) == "unfaithful"
    assert faithful("12 + 30 = 42", "And 17 and 18.", max_new_numbers=None) is None


def test_nothing_must_follow_from_no_thinking():
    assert filters.faithful(trace("All 25 of them."), RIGHT) is None
    assert filters.faithful(trace("<think>25 is"), RIGHT) is None


def test_numbers_are_exact_whatever_others_have_set():
    with decimal.localcontext() as context:
        context.prec = 6
        assert undressed("-10,000,000,000.010") == "-10000000000.01"
        assert undressed("1" * 40 + ".50") == "1" * 40 + ".5"


@given(st.decimals(min_value=0, max_value=10**12, places=2))
def test_a_number_is_undressed_to_one_form(number):
    ways = [f"{number}", f"{number:,}", f"${number}0$", f"{number:,}".replace(",", "{,}")]
    assert {undressed(way) for way in ways} == {undressed(str(number))}
    assert float(undressed(f"-{number}")) == -float(number)


@given(st.text("0123456789.,{}\\boxed$-= xyz\n", max_size=300))
def test_no_text_breaks_it(text):
    filters.readable(trace(f"<think>{text}</think>{text[::-1]}"), RIGHT)


def test_odd_texts_are_read_in_no_time():
    for text in (
        "1," * 50_000,
        "\\boxed{" * 20_000,
        "\n \n" * 50_000,
        "9" * 100_000,
        "``` " * 9_999,
    ):
        filters.readable(trace(f"<think>{text}</think>{text}"), RIGHT)


def real_traces(name):
    if not (DATA / f"{name}.jsonl.gz").exists():
        pytest.skip("set LIMBECK_TEST_DATA to the test data")
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        text = row["response"].replace("<|begin_of_thought|>", "<think>")
        row["text"] = re.sub(
            r"<\|(begin|end)_of_solution\|>", "", text.replace("<|end_of_thought|>", "</think>")
        )
    return rows


@pytest.mark.parametrize("name", ["r1_distill_math", "sky_t1_aime24"])
def test_right_traces_are_kept_and_planted_numbers_found(name):
    rows = [row for row in real_traces(name) if row["correct_checked"]]
    words = [filters.readable(trace(row["text"]), RIGHT) for row in rows]
    assert sum(word is not None for word in words) <= 0.03 * len(rows), words
    draw, found, planted = random.Random(0), 0, 0
    for row, word in zip(rows, words, strict=True):
        thought = split_think(row["text"])
        numbers = re.findall(r"(?<![\d.,_{])\d{2,4}(?![\d.,}])", thought.answer or "")
        if word is None and thought.thinking and numbers:
            old, new = draw.choice(numbers), str(draw.randrange(10_000, 99_999))
            answer = re.sub(rf"(?<!\d){old}(?!\d)", new, thought.answer)
            planted += 1
            text = f"<think>{thought.thinking}</think>{answer}"
            found += filters.readable(trace(text), RIGHT) == "unfaithful"
    assert planted > 20
    assert found >= 0.97 * planted
