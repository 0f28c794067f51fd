"""Modelfiles: the chat template in Ollama's language, where that can say the same."""

import pytest

from tests.export import tiny

pytest.importorskip("torch")
pytest.importorskip("gguf")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def modelfile(tokenizer):
    from limbeck.export import ollama, proof, trials, vocabulary

    words = vocabulary.read(tokenizer, len(tokenizer))
    talks = proof.taken(tokenizer, trials.conversations())
    return ollama.modelfile("q8_0.gguf", tokenizer, words, talks)


def test_ours_is_joined_turns():
    assert modelfile(tiny.phrases("a b")) == (
        "FROM ./q8_0.gguf\n"
        'TEMPLATE """{{ range .Messages }}'
        '{{ if eq .Role "system" }}{{ .Content }}'
        '{{ else if eq .Role "user" }}<|user|>{{ .Content }}'
        '{{ else if eq .Role "assistant" }}<|assistant|>{{ .Content }}<|end|>'
        '{{ end }}{{ end }}<|assistant|>"""\n'
        'PARAMETER stop "<|end|>"\n'
    )


def test_chatml_ends_every_turn():
    tokenizer = tiny.phrases("a b")
    tokenizer.chat_template = CHATML
    told = modelfile(tokenizer)
    assert '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n' in told
    assert told.count("<|im_end|>") == 4  # a question's is written before an answer and at the end


@pytest.mark.parametrize(
    "changed",
    [
        CHATML.replace("m.content", "m.content | trim"),
        CHATML.replace("m.content", "m.content.split('</think>')[-1]"),
        CHATML.replace("<|im_start|>", "{{"),
        CHATML.replace("+ '\n' +", "+ '\n{' +"),  # which our own {{ would follow
    ],
)
def test_what_it_cannot_say_is_left_out_and_told(changed):
    tokenizer = tiny.phrases("a b")
    tokenizer.chat_template = changed
    told = modelfile(tokenizer)
    assert "TEMPLATE" not in told and "run the file with llama.cpp" in told
