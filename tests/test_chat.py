import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from limbeck import chat
from limbeck.errors import UserError
from limbeck.newborn import CHAT_TEMPLATE, train_tokenizer
from limbeck.types import Message

QWEN_LIKE = """\
{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}
{% for m in messages %}
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Opens the thinking itself and drops old turns' thinking, as DeepSeek-R1's does.
OPENING = """\
{% for m in messages %}{% if m.role == 'assistant' %}
{{ '<|assistant|>' + m.content.split('</think>')[-1] + '<|end|>' }}
{%- else %}{{ '<|' + m.role + '|>' + m.content }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"""

NOT_THINKING = CHAT_TEMPLATE.replace(
    "'<|assistant|>' }}", "'<|assistant|><think>\\n\\n</think>\\n\\n' }}"
)

ASK = [Message("user", "What is 3 + 4?")]
TEXT = "<think>Let me add: 3 + 4 = 7.</think>\n7"


def texts() -> Iterator[str]:
    return (f"What is {a} + {b}? Let me add: {a + b}" for a in range(30) for b in range(30))


@cache
def make_tokenizer(template: str | None = CHAT_TEMPLATE, **special: str) -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer(texts(), 400, template or "")
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], **special}
    )
    tokenizer.chat_template = template
    return tokenizer


TOKENIZERS = {
    "own": lambda: make_tokenizer(),
    "qwen_like": lambda: make_tokenizer(QWEN_LIKE, eos_token="<|im_end|>"),
    "opening": lambda: make_tokenizer(OPENING),
    "not_thinking": lambda: make_tokenizer(NOT_THINKING),
    "r1_zero": lambda: make_tokenizer(chat.R1_ZERO_TEMPLATE),
    "pad_is_eos": lambda: make_tokenizer(QWEN_LIKE, eos_token="<|im_end|>", pad_token="<|im_end|>"),
}


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("<think>a</think>b", "a", "b"),
        ("<think>a</think>", "a", ""),
        ("a</think>b", "a", "b"),  # the template had opened it
        ("<think>a", "a", None),
        ("<think>a</think>b</think>c", "a</think>b", "c"),
        ("<think>a</think>b<think>c", "a</think>b<think>c", None),
        ("<think>a</think>b<think>c</think>d", "a</think>b<think>c", "d"),
        ("<think></think>b", "", "b"),
        ("no tags", None, "no tags"),
        ("", None, ""),
        ("</think>", "", ""),
        ("<think", None, "<think"),
        (" x <think>a</think>b", "a", "b"),
    ],
)
def test_split_think(text: str, thinking: str | None, answer: str | None) -> None:
    assert chat.split_think(text) == chat.Thought(thinking, answer)


@pytest.mark.parametrize("piece", ["<think>", "</think>", "<think></think>", "<", "<think", "</"])
def test_split_think_is_linear(piece: str) -> None:
    started = time.process_time()
    chat.split_think(piece * (4_000_000 // len(piece)))
    assert time.process_time() - started < 0.5  # quadratic would take hours


@pytest.mark.parametrize("name", TOKENIZERS)
def test_training_text_is_inference_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    ids, mask = chat.encode_example(tokenizer, ASK, TEXT)
    prompt = chat.prompt_ids(tokenizer, ASK)
    assert ids[: len(prompt)] == prompt
    assert mask == [0] * len(prompt) + [1] * (len(ids) - len(prompt))
    assert tokenizer.decode(prompt) == chat.render_prompt(tokenizer, ASK)
    assert ids[-1] == chat.end_of_turn(tokenizer)
    assert ids.count(ids[-1]) == prompt.count(ids[-1]) + 1
    # whole again, as an engine makes it
    opened = chat.opened_thinking(chat.render_prompt(tokenizer, ASK))
    written = tokenizer.decode(ids[len(prompt) : -1])
    whole = opened + written
    assert whole == (TEXT if name != "opening" else TEXT.replace("<think>", "<think>\n"))
    closed = {"not_thinking": 1, "r1_zero": 2}.get(name, 0)  # in the prompt
    assert ids.count(tokenizer.convert_tokens_to_ids("</think>")) == 1 + closed


def test_own_template_is_what_it_says() -> None:
    messages = [Message("system", "Be brief."), *ASK, Message("assistant", "8"), *ASK]
    assert chat.render_prompt(make_tokenizer(), messages) == (
        "Be brief.<|user|>What is 3 + 4?<|assistant|>8<|end|><|user|>What is 3 + 4?<|assistant|>"
    )


def test_r1_zeros_prompt_is_the_papers() -> None:
    """arXiv:2501.12948, Table 1, word for word; nothing but the end of an answer is a token."""
    tokenizer = make_tokenizer(chat.R1_ZERO_TEMPLATE)
    assert chat.render_prompt(tokenizer, ASK) == (
        "A conversation between User and Assistant. The user asks a question, and the Assistant "
        "solves it. The assistant first thinks about the reasoning process in the mind and then "
        "provides the user with the answer. The reasoning process and answer are enclosed within "
        "<think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning "
        "process here </think> <answer> answer here </answer>. User: What is 3 + 4?. Assistant:"
    )
    assert chat.opened_thinking(chat.render_prompt(tokenizer, ASK)) == ""
    assert chat.end_of_turn(tokenizer) == tokenizer.eos_token_id
    answer = "<think> 3+4=7 </think> <answer> 7 </answer>"
    ids, mask = chat.encode_example(tokenizer, ASK, answer)
    written = [token for token, kept in zip(ids, mask, strict=True) if kept]
    assert tokenizer.decode(written) == answer + tokenizer.eos_token
    chat.preflight(tokenizer, *chat.encode_example(tokenizer, ASK, "<answer> 7 </answer>"))


def test_opened_thinking_is_not_written_twice() -> None:
    tokenizer = make_tokenizer(OPENING)
    for text in ("<think>\nyes</think>7", "<think>yes</think>7"):
        ids, _ = chat.encode_example(tokenizer, ASK, text)
        assert tokenizer.decode(ids).endswith("<|assistant|><think>\nyes</think>7<|end|>")


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("a<think>", "<think>"),
        ("a<think>\n", "<think>\n"),
        ("a<think>\n\n</think>\n\n", ""),
        ("say <think> first", ""),
        ("", ""),
    ],
)
def test_opened_thinking(prompt: str, opened: str) -> None:
    assert chat.opened_thinking(prompt) == opened


def test_end_of_turn() -> None:
    assert chat.end_of_turn(make_tokenizer()) == make_tokenizer().convert_tokens_to_ids("<|end|>")
    # the template's token wins over eos, as in Qwen2.5 base models, whose eos is <|endoftext|>
    tokenizer = make_tokenizer(QWEN_LIKE)
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.decode([chat.end_of_turn(tokenizer)]) == "<|im_end|>"
    silent = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = make_tokenizer(silent)
    assert chat.end_of_turn(tokenizer) == tokenizer.eos_token_id
    mute = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, chat_template=silent
    )
    with pytest.raises(UserError, match="end-of-sequence"):
        chat.end_of_turn(mute)


def test_end_of_turn_is_not_doubled() -> None:
    tokenizer = make_tokenizer()
    assert chat.encode_example(tokenizer, ASK, TEXT + "<|end|>") == chat.encode_example(
        tokenizer, ASK, TEXT
    )


def test_special_tokens_are_added_once() -> None:
    """A tokenizer that begins every text with a token, as Llama's does; the template knows that."""
    tokenizer = train_tokenizer(texts(), 400)
    plain = chat.encode_example(tokenizer, ASK, TEXT)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|pad|> $A", special_tokens=[("<|pad|>", 0)]
    )
    assert tokenizer("3")["input_ids"][0] == 0
    assert chat.encode_example(tokenizer, ASK, TEXT) == plain
    assert chat.prompt_ids(tokenizer, ASK)[0] != 0


def test_batched_equals_single() -> None:
    for make in TOKENIZERS.values():
        pairs = [([Message("user", f"{i}?")], f"<think>{i}</think>{i}") for i in range(5)]
        assert chat.encode_examples(make(), iter(pairs)) == [
            chat.encode_example(make(), *pair) for pair in pairs
        ]
    assert chat.encode_examples(make_tokenizer(), []) == []


def test_no_template_is_a_user_error() -> None:
    with pytest.raises(UserError, match="no chat template"):
        chat.render_prompt(make_tokenizer(None), ASK)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_preflight_shows_what_is_trained(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    shown = chat.preflight(tokenizer, *chat.encode_example(tokenizer, ASK, TEXT))
    end = tokenizer.decode([chat.end_of_turn(tokenizer)])
    assert shown.endswith(f"Let me add: 3 + 4 = 7.</think>\n7{end}⟧")
    assert shown.index("What is") < shown.index("⟦") < shown.index("Let me add")
    assert ("padding token = end of turn: safe" in shown) == (name == "pad_is_eos")


def test_preflight_refuses() -> None:
    tokenizer = make_tokenizer()
    ids, mask = chat.encode_example(tokenizer, ASK, TEXT)
    with pytest.raises(UserError, match="no token of the example is inside the loss"):
        chat.preflight(tokenizer, ids, [0] * len(ids))
    with pytest.raises(UserError, match=r"end-of-turn token '<\|end\|>' is outside the loss"):
        chat.preflight(tokenizer, ids, [*mask[:-1], 0])
    with pytest.raises(UserError, match="end-of-turn"):
        chat.preflight(tokenizer, ids[:-1], mask[:-1])
    answer = ids.index(tokenizer.convert_tokens_to_ids("</think>")) + 1
    with pytest.raises(UserError, match="</think> is outside the loss"):
        chat.preflight(tokenizer, ids, [0] * answer + [1] * (len(ids) - answer))


def test_imports_no_torch() -> None:
    code = "import sys, limbeck.chat; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
