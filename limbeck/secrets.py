"""Keys that must not be told: those in the environment, and what looks like one. No torch."""

from __future__ import annotations

import os
import re

NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")
LOOKS = re.compile(r"\b(?:sk|hf|gsk|xai|ghp|AIza)[-_][A-Za-z0-9_-]{16,}")
MIN_LENGTH = 16  # a shorter one may be a word that texts contain


def hidden(text: str) -> str:
    """The text with every key in it as [key]."""
    for name, value in os.environ.items():
        if NAMES.search(name.upper()) and len(value := value.strip()) >= MIN_LENGTH:
            text = text.replace(value, "[key]")
    return LOOKS.sub("[key]", text)


def is_told(text: str) -> bool:
    """Whether a key stands in the text."""
    return hidden(text) != text
