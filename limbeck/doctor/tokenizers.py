"""Tokenizers: of one model, whose rows and text they must fit, and of a teacher and its student."""

from __future__ import annotations

from collections.abc import Iterator

from limbeck.doctor.finding import Said, broken, fine, worth_knowing
from limbeck.doctor.model import Model
from limbeck.doctor.setup import Setup

SAMPLE = (
    "<think>Let x = 3,571 . Then x^2 - 12 >= 0, isn't it ?\n\n\tdef f(y): return y // 2\n"
    "Wait: \\frac{1}{2} + \\sqrt{2} != 'Naïve' [A-Z] {0}; 100% of $5 & 7~8.</think>\n\\boxed{42}"
)


def embedding_rows(model: Model) -> Iterator[Said]:
    """Every token has a row; rows that no token has are padding, which harms nobody."""
    rows, tokens = model.rows, model.num_tokens
    if rows is None:
        return
    if tokens > rows:
        told = f"the tokenizer has tokens up to {tokens - 1:,}, the embeddings {rows:,} rows"
        yield broken(told, "take the model's own tokenizer, or enlarge the embeddings")
    else:
        padded = f", and {rows - tokens:,} that no token has" if rows > tokens else ""
        yield fine(f"a row for each of {tokens:,} tokens{padded}")


def text_comes_back(model: Model) -> Iterator[Said]:
    """Tokens that lose letters make right answers wrong, and nothing says so."""
    ids = model.tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
    back = str(model.tokenizer.decode(ids))
    if back.strip() == SAMPLE:
        yield fine("from its tokens, unchanged")
    elif "".join(back.split()) == "".join(SAMPLE.split()):
        told = "with other white space: code and words may be run together"
        yield worth_knowing(told, "set clean_up_tokenization_spaces to false")
    else:
        told = "not as it was: letters, signs or tags are lost"
        yield broken(told, "take a tokenizer that knows every byte, such as a byte-level BPE")


def read_elsewhere(model: Model) -> Iterator[Said]:
    """Whether other programs, which ask AutoTokenizer, cut a text as tokenizer.json says."""
    from transformers import AutoTokenizer

    try:
        other = AutoTokenizer.from_pretrained(model.folder, trust_remote_code=False)
    except Exception as error:  # whatever a stranger's files make transformers stumble over
        told = f"AutoTokenizer cannot read it ({type(error).__name__})"
        yield broken(f"{told}, so neither can most programs", "mend tokenizer_config.json")
        return
    one, two = (t(SAMPLE, add_special_tokens=False)["input_ids"] for t in (model.tokenizer, other))
    if one == two:
        yield fine("AutoTokenizer reads as tokenizer.json says")
    else:
        told = f"AutoTokenizer makes a {type(other).__name__} of it, which cuts texts otherwise"
        way_out = (
            "name tokenizer_class PreTrainedTokenizerFast and a model_type it has no rules for"
        )
        yield broken(f"{told}: other engines would feed the model other tokens", way_out)


def padding(model: Model) -> Iterator[Said]:
    """Our loss is masked by position; others mask the padding's token, wherever it stands."""
    from limbeck import chat

    token, name = model.tokenizer.pad_token_id, model.tokenizer.pad_token
    if token is None:
        yield fine("none: not needed here")
    elif model.rows is not None and not 0 <= token < model.rows:
        told = f"its token {token:,} has no row in the embeddings ({model.rows:,})"
        yield broken(told, "name another pad_token")
    elif name in (chat.OPEN, chat.CLOSE):
        told = f"{name} is the padding: programs that mask it never teach to finish thinking"
        yield broken(told, "name another pad_token")
    elif token == chat.end_of_turn(model.tokenizer):
        told = f"{name!r} ends a turn, too: programs that mask padding by token never teach to stop"
        yield worth_knowing(f"{told} (Limbeck does)", "name another pad_token")
    else:
        yield fine(f"{name!r}, which ends no turn")


def teachers_tokens(setup: Setup) -> Iterator[Said]:
    """Of each student and the teacher that it learns from, live or by kept distributions."""
    from limbeck.train.alignment import align_vocabularies
    from limbeck.train.cache import hash_tokenizer

    for pair in setup.pairs():
        student, teacher = setup.model(pair.student), setup.model(pair.teacher)
        if student is None or teacher is None:
            continue
        both = f"{pair.name}: {student.name} and {teacher.name}"
        same_ids = hash_tokenizer(student.tokenizer) == hash_tokenizer(teacher.tokenizer)
        if same_ids:
            rows = {student.rows, teacher.rows}
            padded = "" if len(rows) == 1 else ", their rows are padded otherwise"
            yield fine(f"{both} have the same ids{padded}")
        elif pair.is_kept:
            told = f"{both} have other ids, and kept distributions know ids alone"
            way_out = "let the teacher be live (distill.teacher), or take a student of its family"
            yield broken(told, way_out)
        else:
            rows_of = [m.rows or m.num_tokens for m in (student, teacher)]
            shared = align_vocabularies(student.tokenizer, teacher.tokenizer, *rows_of)
            if shared.reads_alike:
                yield fine(f"{both} have the same tokens by other ids, which are aligned")
            else:
                told = f"{both} cut texts otherwise and share {shared.shared:.0%} of their tokens"
                way_out = "take a teacher of the student's family, if there is one"
                yield worth_knowing(f"{told}; they are compared through the text", way_out)


def hidden_widths(setup: Setup) -> Iterator[Said]:
    """Hidden states are compared number by number."""
    for stage in setup.recipe.stages:
        if getattr(stage.config, "hidden", None) is None:
            continue
        paths = [stage.config.model, stage.config.teacher]  # type: ignore[attr-defined]
        widths = [setup.width(path) for path in paths]
        if None not in widths and widths[0] != widths[1]:
            told = f"{stage.name}: the student's hidden states are {widths[0]} wide, the teacher's"
            way_out = "drop hidden, or take a student as wide as its teacher"
            yield broken(f"{told} {widths[1]}", way_out)
