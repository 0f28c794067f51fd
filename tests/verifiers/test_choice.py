"""Multiple choice: one letter, said plainly, and nothing that only looks like one."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import pytest

from limbeck.problems import make_problem
from limbeck.types import Trace
from limbeck.verifiers import choice

DATA = Path(os.environ.get("LIMBECK_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.exists(), reason="set LIMBECK_TEST_DATA to the test data")
CHOICES = ["12 cm", "A large number", "C", "5\\pi", "the mitochondria", "-5", "5"]


def verify(answer, gold="B", choices=None, finish="stop", **knobs):
    problem = make_problem("?", gold, verifier="choice", meta={"choices": choices or []})
    return choice.verify(problem, Trace("t", "p", 0, answer, finish, "model"), **knobs)


PLAIN = r"""
\boxed{B}|\boxed{\text{B}}|\boxed{\textbf{(B)}\ 12}|\boxed{b}|\boxed{(B)}|\boxed B|\fbox{B}
\boxed{\text{Option B}}|\boxed{A} no, rather \boxed{B}|\boxed{12}, so the answer is (B).
The answer is (B).|The answer is B|the answer is b.|The correct answer is: **B**|Answer: B|ANSWER:B
Answer : $B$|Ans - B|Answer B|answer is option B.|CORRECT OPTION:OPTION B|Correct Option: B
The answer is therefore (B) because (A) is too small.|The answer is B, since 2 > 1.|Choice: B
B is the answer.|Thus, B is the correct answer|(B), which is the correct answer.|So B is correct.
The closest option is (B).|**B**|B|b|(b)|B.|B)|**B) 20 km**|Option B|Choice B.|(B) 20 km
The answer is (A). Wait, that is wrong. The answer is (B).|\text{The answer is } \mathbf{B}.
The answer is (A). Actually, it is (B).|The answer is (B). Options (A) and (C) are wrong.
I think that the answer is B.|<think>The answer is C.</think>B|A is wrong, it seems.~So: Answer: B
The answer is (B).~The answer is (B).|Final answer: \(\text{B}\)|The answer is:~~B|Answer: Ｂ
It follows.~~B|B~~Because it is so.|[B]|\boxed{A} \boxed{B}|The ans<200b>wer is B<200b>."""

NONE = r"""
A B C D|A, B|A and B|(A) or (B)|\boxed{A, B}|\boxed{A}, \boxed{B}|\boxed{A} or \boxed{B}
The answer is A or B.|The answer is (A), (B) and (C).|Answer: A B C D|Answer: A/B
The answer is (A), but also (B).|The answer is (B), but maybe (A).
The answer is (B). Or wait, perhaps C.|Answer: A~Answer: B|The answer is A. The answer is B.
A or B is the answer|(A) and (B) are both right|The answer is either A or B.|The answer is not B.
I do not think the answer is B|It could be B|A large number of cells divide.|I do not know.
I am sure.|The answer is A large number of cells.|Answer: I think so.|The answer is BC
The answer is B = 5 cm.|The answer is D-glucose.|Bears eat fish.|The answer is Bob's.
A) 1~B) 2~C) 3~D) 4|A~B|\boxed{}|\boxed{42}|\boxed{\text{Both A and B}}|The answer is 42
(B) is wrong|B) is incorrect|Then~$$~b|so the height is b|The answer is <0412>.|The answer is (K)"""


def written(texts):
    """One text between bars or in a line of its own; a tilde is a newline in it."""
    texts = texts.strip().replace("\n", "|").replace("<200b>", "\u200b").replace("<0412>", "\u0412")
    return [text.replace("~", "\n") for text in texts.split("|")]


@pytest.mark.parametrize("answer", written(PLAIN))
def test_one_letter_is_the_answer(answer):
    verdict = verify(answer)
    assert (verdict.correct, verdict.extracted) == (True, "B"), verdict


@pytest.mark.parametrize("answer", written(NONE))
def test_what_is_no_answer(answer):
    for gold in "ABCDI":
        verdict = verify(answer, gold=gold)
        assert (verdict.correct, verdict.reason) == (False, "unparsed"), (gold, verdict)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("12 cm", "A"),
        (r"\boxed{12 \text{ cm}}", "A"),
        ("The answer is 12 cm.", "A"),
        ("Answer: The mitochondria", "E"),
        (r"\boxed{5\pi}", "D"),
        (r"\boxed{5}", "G"),
        (r"\boxed{-5}", "F"),
        ("B) A large number", "B"),
        ("E. the mitochondria", "E"),
        ("E) 12 cm", None),
        ("The answer is C", "C"),
        ("12", None),
        ("H", None),
    ],
)
def test_an_options_text_stands_for_its_letter(answer, letter):
    assert verify(answer, gold="A", choices=CHOICES).extracted == letter


def test_two_options_of_one_text_stand_for_neither():
    assert verify("5", gold="A", choices=["5", "5 ", "6"]).reason == "unparsed"


@pytest.mark.parametrize("gold", ["B", "(B)", "b", "B)", "A large number"])
def test_gold_answers(gold):
    assert verify("B", gold=gold, choices=CHOICES).correct is True


@pytest.mark.parametrize("gold", ["", "2", "AB", "K", "H", "none of these"])
def test_bad_gold_answers(gold):
    verdict = verify("B", gold=gold, choices=CHOICES)
    assert (verdict.correct, verdict.reason) == (None, "bad_gold")


def test_other_letters():
    assert verify("The answer is (K).", gold="K", letters="KLMN").correct is True
    assert verify("The answer is 3.", gold="3", letters="1234").correct is True
    assert verify("The answer is 3.5", gold="3", letters="1234").correct is False


def test_what_is_cut_off_is_truncated_unless_the_answer_may_stand_anywhere():
    assert verify("The answer is B", finish="length").reason == "truncated"
    assert verify("<think>The answer is B").reason == "truncated"
    assert verify("<think>The answer is B", answer_in="anywhere").correct is True


@pytest.mark.parametrize(
    "piece", ["The answer is ", "is ", "(A) or ", "A ", "⟦B⟧", "answer: \n", "\\"]
)
def test_hostile_texts_of_many_letters(piece):
    assert verify(piece * (200_000 // len(piece))).correct is False


@needs_data
def test_letters_agree_with_those_that_mmlu_pro_found():
    said = re.compile(r"answer is \(?[A-J]\)?")
    differ = total = 0
    with gzip.open(DATA / "mmlu_pro_outputs" / "outputs.jsonl.gz", "rt") as lines:
        for row in map(json.loads, lines):
            if row["pred"] and said.search(row["generated_text"]):
                found = verify(row["generated_text"], gold="A", choices=row["options"]).extracted
                total += 1
                differ += found != row["pred"]
                assert found in (row["pred"], None)  # several letters, of which it took the first
    assert total > 690
    assert differ / total < 0.02


@needs_data
def test_gold_letters_are_found_in_aqua_rationales():
    rows = [json.loads(line) for line in (DATA / "aqua" / "dev.jsonl").open()]
    found = [verify(row["rationale"], gold=row["correct"], letters="ABCDE") for row in rows]
    assert sum(verdict.correct for verdict in found) > 0.9 * len(rows)
    assert not any(verdict.reason == "wrong" for verdict in found)
