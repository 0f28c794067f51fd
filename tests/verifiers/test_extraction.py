"""Which part of a text is its answer, and that nothing hidden or hostile changes it."""

from __future__ import annotations

import pytest

from limbeck.problems import make_problem
from limbeck.types import Trace
from limbeck.verifiers import (
    answer_text,
    compatible,
    exact,
    final_answer,
    last_boxed,
    number,
    without_hidden,
)

HIDDEN = ["\u200b", "\u200d", "\u202e", "\u2066", "\ufeff", "\u00ad", "\u2060", "\ufe0f", "\u3164"]


def trace(text, finish="stop"):
    return Trace("t", "p", 0, text, finish, "model")


def problem(answer):
    return make_problem("?", answer, verifier="exact")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>1 + 1 = 3</think>2", "2"),
        ("<think>a</think>so <think>b</think>2", "2"),
        ("the template wrote the tag</think>2", "2"),
        ("no thinking, 2", "no thinking, 2"),
        (r"<think>\boxed{1}</think>It is \boxed{2}.", "2"),
        (r"<think>x</think>\boxed{1} or rather \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"<think>\boxed{1}</think>It is 2", "It is 2"),
        (r"<think>done</think>\boxed{1}</think>2", "2"),
        ("<think>`<think></think>`</think>2", "2"),
        (r"<think>spoof </think>\boxed{1} <think>x</think>\boxed{2}", "2"),
        ("<THINK>1</THINK>", "<THINK>1</THINK>"),
        ("<think>x</think>\n<answer> 2 </answer>\n", " 2 "),
        ("<think>x</think><answer>1</answer><answer>2</answer>", "2"),
        (r"<think><answer>1</answer></think><answer>It is \boxed{2}</answer>", "2"),
        (r"<think>x</think><answer>1</answer> no, \boxed{2}", "2"),
        ("<think>x</think>2</answer>", "2</answer>"),
        ("<think>x</think>\u200b2\ufeff", "2"),
        ("<think>x</think>\\box\u00aded{2}", "2"),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(trace(text)) == (answer, None)


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("<think>2 is", "length", "truncated"),
        ("<think>x</think>2", "length", "truncated"),
        ("<think>the answer is 2", "stop", "truncated"),
        ("<think>x</think>y <think>2", "stop", "truncated"),
        (r"<think>x</think>\boxed{2}<think>or", "stop", "truncated"),
        ("<think>x</think>```\n<think>\n```\n2", "stop", "truncated"),
        ("<think>2</thi\u200bnk>2", "stop", "truncated"),
        ("<think>2</THINK>2", "stop", "truncated"),
        ("<think>x</think>  ", "stop", "unparsed"),
        ("<think>2</think>\u200b\ufeff", "stop", "unparsed"),
        (r"<think>x</think>\boxed{}", "stop", "unparsed"),
        ("<think>x</think>2<answer> </answer>", "stop", "unparsed"),
        ("", "stop", "unparsed"),
        ("", "error", "error"),
    ],
)
def test_no_final_answer(text, finish, reason):
    assert final_answer(trace(text, finish)) == (None, reason)
    verdict = exact.verify(problem("2"), trace(text, finish))
    assert verdict.reason == reason
    assert verdict.correct is (None if reason == "error" else False)


def test_answers_may_be_looked_for_anywhere():
    cut = trace(r"<think>so \boxed{2}, and", "length")
    assert final_answer(cut, "anywhere") == ("2", None)
    assert exact.verify(problem("2"), cut, answer_in="anywhere").correct
    assert answer_text(trace("2", "error"), "anywhere") == (None, "error")


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{a{b}c}", "a{b}c"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\text{B}}", r"\text{B}"),
        (r"\fbox{3} then \boxed {4}", "4"),
        (r"\boxed{4} then \fbox{3}", "3"),
        (r"$\boxed 5$", "5"),
        (r"\boxed 1,234.5.", "1,234.5"),
        (r"\boxed B", "B"),
        (r"\boxed{5}, in \boxed as you asked", "5"),
        (r"\boxed{5} with \boxedtext{6}", "5"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\fbox{\boxed{5}}}", "5"),
        (r"\boxed{6 \boxed{5}}", "6 {5}"),
        (r"\boxed{6 \boxed 5}", "6 5"),
        (r"\boxed{\boxed{5} \text{ is wrong}}", r"{5} \text{ is wrong}"),
        (r"\boxed{1 \boxed{2}", "2"),
        (r"\boxed{1}, \boxed{2} and $\boxed{3}$", "1, 2, 3"),
        (r"\boxed{1} \text{ or } \boxed{\boxed{2}}", "1, 2"),
        ("\\boxed{1}\n\n\\boxed{1}\n", "1"),
        ("\\boxed{1}\n\n\\boxed{2}\n", "2"),
        (r"\boxed{1} \boxed{2}. \boxed{3}", "3"),
        (r"\boxed{1} and \boxed{2}, no: \boxed{3}", "3"),
        ("\\boxed{1}" + " " * 1000 + "\\boxed{2}", "2"),
        (r"\boxed{\boxed{1} \boxed{2}}", "{1} {2}"),
        (r"\boxed{}", ""),
        (r"\boxed{1} \boxed{2", ""),
        (r"\boxed{}. \boxed{84}", "84"),
        (r"\boxed{84} \boxed{ }", ""),
        (r"\boxed{\{1}", r"\{1"),
        ("none", None),
    ],
)
def test_last_boxed(text, inside):
    assert last_boxed(text) == inside


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("verifier", [exact, number])
def test_hidden_characters_change_no_answer(verifier, hidden):
    text = f"<think>x</think>\\boxed{{{hidden}1{hidden}2{hidden}}}"
    assert verifier.verify(problem("12"), trace(text)).correct is True
    assert verifier.verify(problem("1"), trace(text)).correct is False
    assert verifier.verify(problem("21"), trace(text)).correct is False


def test_an_invisible_operator_is_no_nothing():
    assert without_hidden("2\u20643") == "2 3"
    assert number.verify(problem("23"), trace("\\boxed{2\u20623}")).correct is False


@pytest.mark.parametrize("digits", ["１２", "١٢", "१२", "𝟏𝟐", "𝟙𝟚"])
def test_digits_of_any_script_are_digits(digits):
    assert number.verify(problem("12"), trace(f"\\boxed{{{digits}}}")).correct is True


def test_exact_takes_compatible_characters_for_one_and_no_look_alikes():
    assert exact.verify(problem("12"), trace("𝟙𝟚")).correct is True
    assert exact.verify(problem("12"), trace("١٢")).correct is False
    assert exact.verify(problem("A"), trace("\u0410")).correct is False


@pytest.mark.parametrize(
    ("text", "plain"),
    [("10²", "10^{2}"), ("x₁₂", "x_{12}"), ("2½", "2 1/2"), ("①", "(1)"), ("1\u20442", "1/2")],
)
def test_compatible_changes_no_value(text, plain):
    assert compatible(text) == plain


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("sun", " sun\n", True),
        ("a b", "a  b", True),
        ("\uff12", "2", True),
        ("Sun", "sun", False),
        ("102", "10²", False),
        ("102", "10₂", False),
        ("21/2", "2½", False),
        ("1/2", "½", True),
        ("1/2", "1\u20442", True),
    ],
)
def test_exact(gold, answer, same):
    assert exact.verify(problem(gold), trace(f"<think>x</think>{answer}")).correct is same


def test_exact_can_forgive_capitals_and_refuses_an_empty_gold_answer():
    assert exact.verify(problem("Sun"), trace("SUN"), ignore_case=True).correct
    assert exact.verify(problem(" "), trace("2")).reason == "bad_gold"


PIECES = [r"\boxed{", "{", "}", "a", " ", r"\boxed" + " " * 1000, r"\boxed 1,1", "\\", "\u200b"]
PIECES += ["\u0300\u0316", "²½", "<think>", "</think>", " and", r"\boxed{6} "]


@pytest.mark.parametrize("piece", PIECES)
def test_hostile_texts_of_a_million_letters_are_read_and_refused(piece):
    text = piece * (1_000_000 // len(piece))
    for hostile in (text, rf"\boxed{{{text}", rf"\boxed{{6}}{text}\boxed{{5}}6 \boxed{{"):
        verdict = exact.verify(problem("5"), trace(hostile))
        assert verdict.correct is False
        assert verdict.extracted is None or len(verdict.extracted) <= 1 << 14
