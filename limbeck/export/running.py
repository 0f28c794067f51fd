"""How an exported model is run, for its card."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limbeck.export.card import About

ASKED = "What is 12 + 5?"
MOST_ASKED = 200  # characters of a question that a program shows
MOST_TOKENS = 256  # of its answer, and no more than half of what the model has room for
DENSE = "CompressedTensorsConfig"  # without it transformers 5.23 cannot read zero points


def first_question(talks: Iterable[Sequence[Mapping[str, str]]]) -> str:
    """The first short line, printable as it is, that a user opens a conversation with, if any."""
    for talk in talks:
        asked = next((turn["content"] for turn in talk if turn["role"] == "user"), "")
        if asked.strip() and len(asked) <= MOST_ASKED and asked.isprintable():
            return asked
    return ""


def literal(text: str) -> str:
    """A printable line as it stands in a program that stands in a fence of backticks."""
    return json.dumps(text, ensure_ascii=False).replace("`", "\\u0060")


def run_folder(about: About) -> list[str]:
    """In transformers and vLLM; in llama.cpp and Ollama once it is a GGUF file."""
    has_zeros = about.scheme is not None and not about.scheme.symmetric
    names = ["AutoModelForCausalLM", "AutoTokenizer", *([DENSE] if has_zeros else [])]
    how = f", quantization_config={DENSE}(dequantize=True)" if has_zeros else ""
    room = about.context // 2 if about.context else MOST_TOKENS
    transformers = f"""\
from transformers import {", ".join(names)}

folder = "PATH OR NAME OF THIS MODEL"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder{how})
asked = tokenizer.apply_chat_template(
    [{{"role": "user", "content": {literal(about.question or ASKED)}}}],
    add_generation_prompt=True, return_tensors="pt", return_dict=True,
)
written = model.generate(**asked, max_new_tokens={max(1, min(MOST_TOKENS, room))})
print(tokenizer.decode(written[0, asked["input_ids"].shape[1]:]))"""
    return [
        "## How to run it",
        f"transformers:\n\n```python\n{transformers}\n```",
        'vLLM:\n\n```\nvllm serve "PATH OR NAME OF THIS MODEL"\n```',
        "Limbeck:\n\n```\nlimbeck serve PATH\n```",
        "llama.cpp and Ollama read GGUF files, which Limbeck writes and proves:\n\n```\n"
        "limbeck export PATH --to gguf --quant q8_0\n```",
    ]


def run_gguf(about: About) -> list[str]:
    """In llama.cpp and Ollama; elsewhere the folder that the file was written from."""
    kind = next(iter(about.proofs))
    return [
        "## How to run it",
        f"llama.cpp:\n\n```\nllama-cli -m {kind}.gguf --jinja\nllama-server -m {kind}.gguf "
        "--jinja\n```",
        f"Ollama, with the Modelfile beside it:\n\n```\nollama create {_slug(about.name)} -f "
        f"Modelfile.{kind}\nollama run {_slug(about.name)}\n```",
        f"Limbeck:\n\n```\nlimbeck serve {kind}.gguf\n```",
        "transformers and vLLM run the Hugging Face folder that it was written from:\n\n```\n"
        "limbeck export PATH --to hf\n```",
    ]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"
