"""Where a sentence ends: the decisions of Punkt, which IFEval's figures were made with.

Kiss and Strunk 2006, https://aclanthology.org/J06-4003. A sentence ends at `?`, at `!`, and at a
period that does not belong to an abbreviation, an initial, a number before a small letter or an
ellipsis. Punkt learned from the Wall Street Journal which words are abbreviations and which open
sentences; those words are here. It also learned which of 20,000 words are written in capitals in
the middle of a sentence: of these only the commonest are here, so where a word in capitals follows
an abbreviation, an ellipsis or an initial, it is taken for a name unless it is one of these, and
some of these places are decided otherwise than by Punkt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

CLOSERS = re.compile(r"[\"')\]}]+(?:\s+|(?=--)|$)", re.MULTILINE)  # belong to the sentence before
APART = r")\";}\]*:@'({\[?!"  # what stands in no word
AMID = re.compile(rf"[.?!](?=[{APART}])")  # may end a sentence without a space behind it
TOKEN = re.compile(  # within a word: dashes, periods, what may stand in a word, single marks
    r"-{2,}|\.{2,}"
    rf"|[^\s(\"`{{\[:;&#*@)}}\]\-,](?:(?!--|\.\.|,(?:$|[{APART}]))[^\s{APART}])*"
    r"|\S"
)
NUMBER = re.compile(r"-?[.,]?\d[\d,.-]*")
INITIAL = re.compile(r"[^\W\d]\.")
ABBREVIATED = """
adm ave bros cie co col conn corp cos ct dr ft gen inc jr lt ltd maj messrs mg mr mrs ms ok ph.d
prof rep reps sen sr st sw vs yr chg jan feb aug sept sep oct nov dec tues wed fri ala ariz calif
colo fla ga ill kan ky mich minn nev okla ore pa tenn va vt w.va wash wis u.s u.s.a u.k u.n u.s.s.r
n.y n.j n.h n.c n.d n.m n.v s.a s.c s.g s.p.a r.i l.a d.c d.h a.c a.d a.m p.m m.b.a a.a a.g a.h a.s
a.t b.f b.v c.v d.w e.f e.h e.l e.m f.g f.j g.d g.f g.k h.c h.f h.m j.b j.c j.j j.k j.p j.r l.f l.p
m.j r.a r.h r.j r.k r.t s.s t.j w.c w.r w.w c d e f g h k l m n p r s t v w
"""
OPEN_SENTENCES = """
according although among both but despite even he however i if in indeed instead it many meanwhile
moreover most nevertheless nonetheless nor sales separately similarly since so some the there these
they this though thus under when while yet
"""
ARE_NO_NAMES = """
a about after all also an and any are as at because before by can choose could did do does each
every find first finally for from get give has have her here his how into is its just let make may
more must my next no not now of on one or our other out over please she should such take than that
their then to use was we were what where which who why will with would you your
"""
ABBREVIATIONS, OPENERS = set(ABBREVIATED.split()), set(OPEN_SENTENCES.split())
COMMON = OPENERS | set(ARE_NO_NAMES.split())


def num_sentences(text: str) -> int:
    """How many sentences a text has."""
    count = 0
    for begin, end in pairwise([0, *_breaks(text), len(text.rstrip())]):
        closers = CLOSERS.match(text, begin) if begin else None
        count += (closers.end() if closers else begin) < end
    return count


def _breaks(text: str) -> Iterator[int]:
    """Where sentences begin, but for the first; at most one between two white spaces."""
    words = [*re.finditer(r"\S+", text)]
    for word, after in zip(words, [*words[1:], None], strict=False):
        end = len(word[0])
        if after is None or word[0][-1] not in ".?!":
            end = max((mark.end() for mark in AMID.finditer(word[0])), default=0)
        behind = word[0][end] if end < len(word[0]) else after[0] if after else ""
        if end and _ends_sentence(word[0][:end], behind):
            yield after.start() if after and end == len(word[0]) else word.start() + end


def _ends_sentence(word: str, behind: str) -> bool:
    """Whether a sentence ends somewhere in a word, or at its end, with this behind it."""
    tokens = TOKEN.findall(word) + TOKEN.findall(behind)[:1]
    return any(_ends(token, following) for token, following in pairwise(tokens))


def _ends(token: str, following: str) -> bool:
    """Whether a sentence ends with a token."""
    if token in ("?", "!", "."):
        return True
    if not token.endswith("."):
        return False
    bare = token[:-1].lower()
    opens = following.lower() if following[0].isupper() else ""
    if token.endswith("..") or {bare, bare.rpartition("-")[2]} & ABBREVIATIONS:
        return opens in OPENERS and not INITIAL.fullmatch(token)
    if following[0].islower() or following in ";:,.!?":
        return not (INITIAL.fullmatch(token) or NUMBER.fullmatch(bare))
    return not (opens and INITIAL.fullmatch(token)) or opens in COMMON
