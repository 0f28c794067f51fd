"""IFEval's instructions, one by one, and what a verdict makes of them."""

from __future__ import annotations

import sys

import pytest

from limbeck.errors import UserError
from limbeck.problems import make_problem
from limbeck.types import Trace
from limbeck.verifiers import ifeval
from limbeck.verifiers.instructions import FUNCTIONS, case, is_followed, language, sentences
from limbeck.verifiers.judging import gradable, judge

ENGLISH = "the quick brown fox jumps over the lazy dog while the farmer looks on"
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund, und der Bauer sieht zu."
CASES = [  # id, arguments, texts that follow it, texts that do not
    (
        "keywords:existence",
        {"keywords": ["fox", "Dog"]},
        ["a FOX, two dogs", "doghouse foxes"],
        ["a fox", ""],
    ),
    (
        "keywords:frequency",
        {"keyword": "fox", "frequency": 2, "relation": "at least"},
        ["fox Fox", "foxes, fox, fox"],
        ["fox"],
    ),
    (
        "keywords:frequency",
        {"keyword": "fox", "frequency": 2, "relation": "less than"},
        ["fox", ""],
        ["fox fox"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["rock", "C"]},
        ["a rocket", "abc"],
        ["a Rock.", "in C, say"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "Q", "let_frequency": 3, "let_relation": "less than"},
        ["qQ", ""],
        ["q Q q"],
    ),
    (
        "language:response_language",
        {"language": "de"},
        [GERMAN, "12345 67890"],  # what has no words is in every language
        [ENGLISH],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": "at least"},
        ["it isn't so", "a-b c_d 5"],
        ["a b_c 5", "…"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "less than"},
        ["One. Two", "Dr. Who met Mr. Smith at 3.5 p.m. on Jan. 5. They left!"],
        ["One. Two! Three?"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***a *** b***"],
        ["a\n\nb", "a***b***c", "a *** *** b"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weekend"},
        ["a\n\nweekend, here", "a\n\n\"Weekend's gone", "a\n\n'weekend'\n\n"],
        ["weekend\n\na", "a\n\nweekends", "a\n\nb\n\nweekend", "a\n\n\n\nweekend", "weekend"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[a] and [b c]", "[a[b] [c]]"],
        ["[a]", "[a] [b\nc]", "[[[["],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["a\nP.S. b", "p. s. b"],
        ["PS b", "a"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["a\nP.P.S b", "p. p. s"],
        ["P.S. b"],
    ),
    ("detectable_format:constrained_response", {}, ["So: My answer is no."], ["My answer is No."]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\n\n  - b", "* a\n---"],
        ["* a", "** a\n** b", "- a\n- b\n- c"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b*", "**a** *b*", "**a**\n**b**"],
        ["*a*", "**", "* a\n* b", "** ** *a*"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb", "SECTION1 SECTION2"],
        ["SECTION 1", "Section 1 Section 2", "SECTION A SECTION B"],
    ),
    (
        "detectable_format:title",
        {},
        ["<<a>>", "b\n <<a>> c", "<<<a>>>", "<< a >> >>"],
        ["<a>", "<<>>", "<< >>", "<<a\n>>", ">>a<<"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', "```json\n[1, 2]\n```", "```\n3\n```"],
        ["{'a': 1}", 'Here: {"a": 1}', "[" * 100_000],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Say A. "},
        ["say a. A", " Say A."],
        ["A", "I say a."],
    ),
    (
        "combination:two_responses",
        {},
        ["a ****** b", "******a******b******"],
        ["a", "a ****** a", "a****** ******b", "a******b******c"],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Any questions?"},
        ["a. any questions? ", '"Any questions?"'],
        ["Any questions? No."],
    ),
    ("startend:quotation", {}, ['"a"', ' "a" "b"\n'], ['"', "a", '"a', "“a”"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 3, "capital_relation": "at least"},
        ["I DON'T", "A B-C D1", "AT&T and NASA"],
        ["I Do", "NASA's U.S.A. plan"],
    ),
    ("change_case:english_capital", {}, [ENGLISH.upper()], [ENGLISH, GERMAN.upper(), "12"]),
    (
        "change_case:english_lowercase",
        {},
        [ENGLISH],
        [ENGLISH.upper(), GERMAN.lower(), ENGLISH[:3] + "X"],
    ),
    ("punctuation:no_comma", {}, ["a; b，c"], ["a, b"]),
]


@pytest.fixture(autouse=True)
def _languages():
    pytest.importorskip("langdetect")


def problem_of(*instructions):
    asked = [{"id": name, "kwargs": kwargs} for name, kwargs in instructions]
    return make_problem("Do.", "", verifier="ifeval", meta={"instructions": asked})


def verdict_on(problem, text, finish="stop"):
    return judge(problem, Trace("t", problem.id, 0, text, finish, "model"))


@pytest.mark.parametrize(("name", "knobs", "yes", "no"), CASES, ids=[case[0] for case in CASES])
def test_an_instruction_is_followed_or_not(name, knobs, yes, no):
    assert [is_followed(text, name, knobs) for text in yes] == [True] * len(yes)
    assert [is_followed(text, name, knobs) for text in no] == [False] * len(no)


def test_all_25_are_tried():
    assert {case[0] for case in CASES} == set(FUNCTIONS)
    assert len(FUNCTIONS) == 25


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("No end", 1),
        ("Wow!!! Really?! Yes.", 3),
        ('He said "No." Then he left.', 2),
        ("(It rained.) It poured.", 2),
        ("At 3.5 km. it ends", 2),
        ("1. Apples\n2. pears", 2),  # behind a number a small letter goes on
        ("See J. K. Rowling and Robert A. Heinlein. Both write.", 2),
        ("We met in the U.S. in May. It was hot.", 2),
        ("We left the U.S. The others stayed.", 2),
        ("Take fruit, e.g. Apples.", 2),  # not among the words that Punkt knows
        ("Well... perhaps. Or not", 2),
        ("Well... The end.", 2),
        ("It ends.** And goes on.", 2),
        ("Visit www.example.com today. Now", 2),
        ("He is a Ph.D. candidate vs. Prof. Smith.", 1),
    ],
)
def test_sentences(text, count):
    assert sentences.num_sentences(text) == count


def test_words_are_those_of_the_penn_treebank():
    said = "I CAN'T say \"NO-ONE'S\" (AT&T:X) CANNOT 5:30PM U.S. FOO--BAR."
    assert " ".join(word for word in case.words(said) if word.isupper()) == (
        "I CA N'T NO-ONE 'S AT T X CAN NOT 5:30PM U.S. FOO BAR."
    )


COMMA, QUOTED = ("punctuation:no_comma", {}), ("startend:quotation", {})


def test_right_is_what_follows_all_and_the_score_is_the_share():
    problem = problem_of(COMMA, QUOTED)
    whole, half = verdict_on(problem, '"a b"'), verdict_on(problem, "a b")
    assert (whole.correct, whole.score, whole.reason) == (True, 1.0, "correct")
    assert (half.correct, half.score, half.reason) == (False, 0.5, "wrong")
    assert half.extracted == "not followed: startend:quotation"


def test_what_is_thought_is_not_judged():
    problem = problem_of(COMMA, QUOTED)
    for text in ('<think>first, second</think>\n\n"a b"', '<think>,</think><answer>"a b"</answer>'):
        assert verdict_on(problem, text).correct
        assert ifeval.followed(problem, text, loose=False) == [True, True]
    for text, finish in (('<think>"a b"', "stop"), ('"a b"', "length"), ("  ", "stop")):
        verdict = verdict_on(problem, text, finish)
        assert (verdict.correct, verdict.score) == (False, 0.0)
    assert verdict_on(problem, "", "error").correct is None
    assert ifeval.followed(problem, "<think>a b", loose=True) == [False, False]


@pytest.mark.parametrize(
    "text", ['Sure!\n"a"', '"a"\nDone.', 'Sure!\n"a"\nDone.', '**"a"**', 'Sure!\n*"a"*\nDone.']
)
def test_loosely_a_first_and_a_last_line_and_asterisks_are_forgiven(text):
    assert ifeval.followed(problem_of(QUOTED), text, loose=False) == [False]
    assert ifeval.followed(problem_of(QUOTED), text, loose=True) == [True]


def test_loosely_nothing_is_left_of_one_line():
    assert ifeval.followed(problem_of(COMMA), "a, b", loose=True) == [False]
    assert ifeval.followed(problem_of(COMMA, QUOTED), '"a, b"', loose=True) == [False, True]


@pytest.mark.parametrize(
    "instructions",
    [
        None,
        [],
        "punctuation:no_comma",
        [{"kwargs": {}}],
        [{"id": "punctuation:no_such"}],
        [{"id": "length_constraints:number_words"}],
        [{"id": "length_constraints:number_words", "kwargs": {"num_words": None}}],
        [{"id": "punctuation:no_comma", "kwargs": {"letter": "a"}}],
        [{"id": "keywords:existence", "kwargs": {"keywords": "fox"}}],
        [
            {
                "id": "length_constraints:number_words",
                "kwargs": {"num_words": 3, "relation": "around"},
            }
        ],
    ],
)
def test_instructions_that_cannot_be_checked_give_no_verdict(instructions):
    problem = make_problem("?", "", verifier="ifeval", meta={"instructions": instructions})
    verdict = verdict_on(problem, "a b")
    assert (verdict.correct, verdict.reason) == (None, "bad_gold")


def test_without_the_package_that_tells_languages_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(language, "detectors", language.detectors.__wrapped__)
    monkeypatch.setitem(sys.modules, "langdetect.detector_factory", None)
    problem = problem_of(("language:response_language", {"language": "de"}))
    with pytest.raises(UserError, match=r"pip install 'limbeck\[ifeval\]'"):
        verdict_on(problem, "ja")


def test_a_problem_can_be_collected_if_its_instructions_can_be_checked():
    assert gradable(problem_of(COMMA, QUOTED)).correct
    assert gradable(problem_of(COMMA, ("punctuation:no_such", {}))).reason == "bad_gold"


def test_arguments_that_are_null_are_none():
    nulls = {"keywords": None, "num_words": None}
    assert verdict_on(problem_of(("punctuation:no_comma", nulls)), "a b").correct
    problem = make_problem(
        "?", "", verifier="ifeval", meta={"instructions": [{"id": COMMA[0], "kwargs": None}]}
    )
    assert verdict_on(problem, "a b").correct


def test_in_place_of_a_mark_a_letter_is_counted_as_the_reference_does():
    knobs = {"letter": "!", "let_frequency": 3, "let_relation": "at least"}
    assert not is_followed("!!!", "keywords:letter_frequency", knobs)
    assert is_followed("here we are", "keywords:letter_frequency", knobs)


def test_a_language_is_always_told_alike():
    short = ["no", "si", "la casa", "hello world", "12 de mayo"]
    said = [
        [is_followed(text, "language:response_language", {"language": "en"}) for text in short]
        for _ in range(5)
    ]
    assert said == said[:1] * 5


@pytest.mark.parametrize(
    "unit", ["<", "[", "*", "\n", " ", "-\n", "a. ", "! ", '"', "' ", "a@", "."]
)
def test_long_answers_that_attack_patterns_take_no_longer_than_others(unit):
    """A pattern that looks again and again through the rest would take hours over a megabyte."""
    text = unit * (1_000_000 // len(unit))
    for name, knobs, _, _ in CASES:
        assert is_followed(text, name, knobs) in (True, False)
