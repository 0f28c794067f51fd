"""Ways of asking: what stands in the prompt, and that a chat template takes it."""

from __future__ import annotations

import pytest

from limbeck import chat, newborn, prompting
from limbeck.errors import UserError
from limbeck.plugins import Kind
from limbeck.problems import make_problem
from limbeck.problems.protocol import BOXED, LETTER
from limbeck.problems.rows import Columns, problem_from_row
from limbeck.prompting import Example
from limbeck.types import Message

ROW = {"question": "What is 6 x 7?", "answer": "42"}
PROBLEM = problem_from_row(ROW, "row 1", Columns(prompt=BOXED))
EXAMPLES = [
    Example("a", "What is 2 x 2?", "Twice two.\n\n4"),
    Example("b", "What is 2 x 3?", "Twice three.\n\n6"),
]
FORM = "Put your final answer within \\boxed{}."


def last(problem) -> str:
    return problem.messages[-1].content


def test_the_protocols_words_give_way():
    assert "step by step" in last(PROBLEM)
    assert last(prompting.direct(PROBLEM)) == f"What is 6 x 7?\n\n{prompting.AT_ONCE} {FORM}"
    cot = prompting.zero_shot_cot(PROBLEM)
    assert last(cot) == f"What is 6 x 7?\n\n{FORM} Let's think step by step."
    assert (cot.id, cot.answer, cot.verifier) == (PROBLEM.id, "42", "number")


def test_options_are_part_of_the_question():
    row = {"question": "Which is odd?", "choices": ["2", "3"], "answer": "3"}
    columns = Columns(choices="choices", verifier="choice", prompt=LETTER)
    asked = last(prompting.direct(problem_from_row(row, "row 1", columns)))
    assert asked.startswith("Which is odd?\n\nA) 2\nB) 3\n\n") and "Answer: X" not in asked
    assert "the letter of your answer within \\boxed{}" in asked


def test_a_prompt_that_is_the_task_stays():
    prompt = "Is this film review positive or negative?\n\n{question}"
    row = {"question": "Dull.", "answer": "negative"}
    review = problem_from_row(row, "row 1", Columns(verifier="exact", prompt=prompt))
    asked = last(prompting.direct(review))
    assert asked == f"Is this film review positive or negative?\n\nDull.\n\n{prompting.AT_ONCE}"


def test_worked_examples_are_turns_or_one_prompt():
    asked = prompting.few_shot_cot(PROBLEM, EXAMPLES, num=1)
    assert [m.role for m in asked.messages] == ["user", "assistant", "user"]
    assert asked.messages[1].content == "Twice two.\n\n4"
    assert last(asked) == f"What is 6 x 7?\n\n{FORM}"
    (whole,) = prompting.few_shot_cot(PROBLEM, EXAMPLES, num=2, turns=False).messages
    assert whole.content == (
        "Q: What is 2 x 2?\nA: Twice two.\n\n4\n\nQ: What is 2 x 3?\nA: Twice three.\n\n6\n\n"
        f"Q: What is 6 x 7?\n\n{FORM}\nA:"
    )


def test_a_system_turn_stays_first():
    told = make_problem("What is 1 + 1?", "2", verifier="number")
    told = prompting.replace(told, messages=(Message("system", "Be brief."), *told.messages))
    asked = prompting.few_shot_cot(told, EXAMPLES, num=1)
    assert [m.role for m in asked.messages] == ["system", "user", "assistant", "user"]


def test_an_example_shows_its_thinking_as_text():
    row = {
        "problem_id": "x",
        "messages": [
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": "<think>\nOne, one.\n</think>\n\n2"},
        ],
    }
    assert Example.of(row) == Example("x", "1 + 1?", "One, one.\n\n2")


@pytest.mark.parametrize(
    ("examples", "num", "mistake"),
    [
        (EXAMPLES, 3, "there are 2 worked examples, and num is 3"),
        ([Example(PROBLEM.id, "?", "42")], 1, "is one of the worked examples"),
        ([Example(None, "what is  6 X 7?", "42")], 1, "is one of the worked examples"),
        ([Example(None, PROBLEM.question, "42")], 1, "is one of the worked examples"),
    ],
)
def test_examples_that_will_not_do(examples, num, mistake):
    with pytest.raises(UserError, match=mistake):
        prompting.few_shot_cot(PROBLEM, examples, num=num)


def test_only_what_is_shown_must_be_another_problem():
    shown = [*EXAMPLES, Example(PROBLEM.id, "?", "42")]
    assert prompting.few_shot_cot(PROBLEM, shown, num=2).id == PROBLEM.id


@pytest.mark.parametrize("template", [newborn.CHAT_TEMPLATE, chat.R1_ZERO_TEMPLATE])
def test_chat_templates_take_turns(template):
    texts = [f"What is {i} x {j}? Twice three." for i in range(20) for j in range(20)]
    tokenizer = newborn.train_tokenizer(texts, 300, chat_template=template)
    asked = prompting.few_shot_cot(PROBLEM, EXAMPLES, num=2)
    prompt = chat.render_prompt(tokenizer, asked.messages)
    places = [
        prompt.index(text) for text in ("2 x 2", "Twice two", "2 x 3", "Twice three", "6 x 7")
    ]
    assert places == sorted(places)


def test_the_ways_by_name():
    kind = Kind("way of prompting", "limbeck.prompting")
    assert kind.names() == ["direct", "few_shot_cot", "zero_shot_cot"]
