"""Which language a text is in, by langdetect, since that is what IFEval's figures were made with.

Nakatani Shuyo 2010: naive Bayes over the letter n-grams of 55 languages' Wikipedias. It draws at
random; here it always draws alike.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from limbeck.errors import UserError

if TYPE_CHECKING:
    from langdetect.detector_factory import DetectorFactory

MAX_LETTERS = 1 << 17  # it reads 10,000, but first looks for links in all of them


def response_language(text: str, *, language: str) -> bool:
    """The text is in a language, by its code (ISO 639-1, `zh-cn`); so is one that has no words."""
    detector = detectors().create()
    from langdetect.lang_detect_exception import LangDetectException

    detector.append(text[:MAX_LETTERS])
    try:
        return bool(detector.detect() == language)
    except LangDetectException:
        return True


@cache
def detectors() -> DetectorFactory:
    """What makes detectors, each of which draws with the same seed."""
    try:
        from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory
    except ImportError as error:
        way_out = "pip install 'limbeck[ifeval]'"
        raise UserError("verifier ifeval", "needs the package langdetect", way_out) from error
    found = DetectorFactory()
    found.load_profile(PROFILES_DIRECTORY)
    found.set_seed(0)
    return found
