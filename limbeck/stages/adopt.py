"""adopt: a model of somebody's becomes one of this run, spoken to by another chat template.

What a base needs that is to be served, or that has no template of its own: trainer, engines and
servers then all speak to it alike, since they take its folder's word.
"""

from __future__ import annotations

from typing import Any, Literal

from limbeck import chat
from limbeck.config import ModelPath, StageConfig
from limbeck.folder import StageFolder

WRITES = {"model": "model"}
GIVES_TEMPLATE = True  # so what it takes need not have one

# Plain text, as DeepSeek-LLM's (2401.02954), which asks nothing of a vocabulary.
PLAIN = (
    "{{ bos_token | default('', true) }}{% for message in messages %}"
    "{% if message.role == 'user' %}{{ 'User: ' + message.content + '\\n\\n' }}"
    "{% elif message.role == 'assistant' %}{{ 'Assistant: ' + message.content + eos_token }}"
    "{% else %}{{ message.content + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
TEMPLATES = {"plain": PLAIN, "r1_zero": chat.R1_ZERO_TEMPLATE}


class Config(StageConfig):
    model: ModelPath
    """Whose weights and tokenizer are taken: a model of this run, a folder or a Hub name."""
    template: Literal["plain", "r1_zero"]
    """`plain` is `User: …` and `Assistant: …`, ended by the end of sequence; `r1_zero` is what
    DeepSeek-R1-Zero was asked with."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """How the weights are written; bfloat16 loses nothing of a model that is kept in it."""


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `model`, an ordinary Hugging Face folder."""
    from limbeck import models

    with out.account("adopt"):
        tokenizer = models.load_tokenizer(config.model)
        tokenizer.chat_template = TEMPLATES[config.template]
        model = models.load_model(config.model, config.dtype)
        models.save_model(model, tokenizer, out.path / "model")
    size = models.num_parameters(model)
    out.log(f"{size:,} parameters, spoken to by the template {config.template}")
    return {"num_parameters": size, "model": config.model}
