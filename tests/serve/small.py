"""A model that is made in a moment, in a folder."""

from __future__ import annotations

from pathlib import Path

from limbeck import models, newborn

WORDS = ["plus", "minus", "legs", "think", "about", "until", "done", "fox", "lazy", "dog"]


def save_model(folder: Path, template: str = newborn.CHAT_TEMPLATE) -> None:
    """Two layers, a context of 512, a tokenizer of 500."""
    texts = (f"{a} {w} {b} is {a + b} legs " for a in range(30) for b in range(9) for w in WORDS)
    tokenizer = newborn.train_tokenizer(texts, 500, chat_template=template)
    model = newborn.create_model(
        "llama",
        len(tokenizer),
        0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    models.save_model(model, tokenizer, folder)
