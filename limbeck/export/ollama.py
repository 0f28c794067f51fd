"""The Modelfile by which Ollama takes a GGUF file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from limbeck import chat
from limbeck.errors import UserError
from limbeck.export.trials import Turns
from limbeck.export.vocabulary import Vocabulary
from limbeck.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USER, ASSISTANT, SYSTEM, NEXT = "limbeckuser", "limbeckassistant", "limbecksystem", "limbecknext"


@dataclass(frozen=True)
class Roles:
    """A chat template that writes each turn between two texts, and `opening` before the answer."""

    around: dict[str, tuple[str, str]]
    opening: str

    def render(self, talk: Turns) -> str:
        turns = [f"{self.around[m.role][0]}{m.content}{self.around[m.role][1]}" for m in talk]
        return "".join(turns) + self.opening

    def in_go(self) -> str:
        """The same in Ollama's language of templates."""
        branches: list[str] = []
        for role, (before, after) in self.around.items():
            test = f'{{{{ {"else " if branches else ""}if eq .Role "{role}" }}}}'
            branches.append(f"{test}{before}{{{{ .Content }}}}{after}")
        turns = "".join(branches)
        return f"{{{{ range .Messages }}}}{turns}{{{{ end }}}}{{{{ end }}}}{self.opening}"


def modelfile(
    file: str,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    talks: Sequence[Turns],
) -> str:
    """FROM, TEMPLATE and where an answer stops.

    Ollama reads no jinja: it knows some templates by sight and has a language of its own. A
    template is written where it says the same of all conversations `talks`.
    """
    lines = [f"FROM ./{file}"]
    if template := go_template(tokenizer, talks, vocabulary.adds_bos):
        lines.append(f'TEMPLATE """{template}"""')
    else:
        lines.append(
            "# The chat template has no equal in Ollama's language: unless Ollama knows it"
        )
        lines.append("# by sight, run the file with llama.cpp, which reads the template itself.")
    ends = dict.fromkeys(vocabulary.tokens[vocabulary.special[end]] for end in ("eot", "eos"))
    lines += [f'PARAMETER stop "{text}"' for text in ends if '"' not in text]
    return "\n".join(lines) + "\n"


def go_template(
    tokenizer: PreTrainedTokenizerBase, talks: Sequence[Turns], adds_bos: bool
) -> str | None:
    """The chat template in Ollama's language; None where it does more than join turns."""
    bos = str(tokenizer.bos_token) if adds_bos else ""  # Ollama's runner opens texts itself
    try:
        roles = _roles(tokenizer, bos)
    except (UserError, ValueError):
        return None
    if roles is None:
        return None
    for talk in talks:
        wanted = chat.render_prompt(tokenizer, talk).removeprefix(bos)
        if any(m.role not in roles.around for m in talk) or roles.render(talk) != wanted:
            return None
    parts = [*(text for pair in roles.around.values() for text in pair), roles.opening]
    return None if any(map(_says_more, parts)) else roles.in_go()


def _says_more(part: str) -> bool:
    """Whether a text would be more than itself in a Modelfile: `{` before our own `{{`, too."""
    return "{{" in part or part.endswith("{") or '"""' in part


def _roles(tokenizer: PreTrainedTokenizerBase, bos: str) -> Roles | None:
    """What stands around each role's turns, read off conversations of known words."""
    talk = (Message("user", USER), Message("assistant", ASSISTANT), Message("user", NEXT))
    text = chat.render_prompt(tokenizer, talk).removeprefix(bos)
    before_user, rest = text.split(USER)
    before_assistant, rest = rest.split(ASSISTANT)
    between, opening = rest.split(NEXT)
    if not between.endswith(before_user):
        return None
    after_assistant = between.removesuffix(before_user)
    around = {"user": (before_user, ""), "assistant": (before_assistant, after_assistant)}
    # What ends a user's turn is written with what comes next: before each answer, and in `opening`.
    asked = (Message("system", SYSTEM), Message("user", USER))
    try:
        before_system, rest = chat.render_prompt(tokenizer, asked).removeprefix(bos).split(SYSTEM)
    except Exception:  # a template's own words for a turn that it does not know
        return Roles(around, opening)
    between = rest.partition(USER)[0]
    if not between.endswith(before_user):
        return None
    return Roles({"system": (before_system, between.removesuffix(before_user)), **around}, opening)
