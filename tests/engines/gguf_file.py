"""A model's folder as a GGUF file, for tests."""

from __future__ import annotations

from pathlib import Path

import pytest


def written(folder: Path, kind: str = "f32") -> Path:
    """The file beside the folder, written if it is not there; skips where llama.cpp is missing."""
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    from limbeck import models
    from limbeck.export import gguf, vocabulary

    path = folder.parent / f"{folder.name}-{kind}.gguf"
    if not path.exists():
        model, tokenizer = models.load_model(folder), models.load_tokenizer(folder)
        words = vocabulary.read(tokenizer, len(model.get_input_embeddings().weight))
        gguf.write(model, words, kind, path, name="small", log=lambda text: None)
    return path
