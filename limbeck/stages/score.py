"""score: a teacher's distribution on given texts, kept so that a student learns it without it.

Of each token that is to be learned the most probable tokens and what all others have together, or
random draws (2503.16870): 6 bytes for each of them, where the whole distribution over 152,000
tokens would take 304 kB.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from limbeck import ledger, store
from limbeck.config import DatasetPath, HowRun, ModelPath, Plugin, StageConfig
from limbeck.engines.journaled import open_journal
from limbeck.engines.local import signature
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.journal import Journal
from limbeck.plugins import EngineChoice
from limbeck.train.config import Temperature

if TYPE_CHECKING:
    from limbeck.train.batch import Example
    from limbeck.train.examples import Lessons
    from limbeck.train.teacher import Distribution

WRITES = {"distributions": "distributions"}
RESUMES = True
UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1))
PART_TOKENS = 1 << 15  # learned tokens of a part: 13 MB at k = 64, and what a kill may cost

Draws = Annotated[int, Field(ge=1, le=1024)]  # float16 still tells their shares apart


class Config(StageConfig):
    data: DatasetPath
    """What is scored: verified traces, as `curate` keeps them with its filter `correct`."""
    teacher: ModelPath | None = None
    """Whose distribution is kept: a model of this run, a folder or a Hub name, or"""
    engine: EngineChoice | None = None
    """an engine that tells log-probabilities, such as `vllm`; at temperature 1, top_k alone."""
    method: Literal["top_k", "sample"] = "top_k"
    """`top_k` keeps the most probable tokens, `sample` random draws, which are unbiased."""
    num_top: PositiveInt = 64
    """How many of the most probable tokens are kept; a vLLM server gives 20 unless it is started
    with a larger --max-logprobs."""
    num_draws: Draws = 64
    """How many tokens are drawn, by `sample`."""
    temperatures: Annotated[list[Temperature], Field(min_length=1)] = [1.0]
    """At which temperatures a student may learn it; `sample` draws at one."""
    max_length: PositiveInt = 32_768
    """Longer rows, and those that the teacher's context does not hold, are left out and counted."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What `teacher` computes in; an engine has its own."""
    seed: int = 0
    """Every row's draws are derived from it."""
    micro_batch_tokens: HowRun[PositiveInt] = 16_384
    """Tokens that are computed at once."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.teacher is None) == (self.engine is None):
            raise ValueError("needs a teacher or an engine; give one of the two")
        if len({*self.temperatures}) < len(self.temperatures):
            raise ValueError("temperatures has one twice; drop it")
        if self.method == "sample" and len(self.temperatures) > 1:
            raise ValueError("sample draws at one temperature; give one, or take top_k")
        if self.engine is not None:
            _refuse_engine(self, self.engine)
        return self

    @property
    def model(self) -> str:
        """The teacher's, whose tokenizer reads the data."""
        if self.engine is not None:
            return str(self.engine.knobs["model"])
        assert self.teacher is not None
        return self.teacher


def _refuse_engine(config: Config, engine: Plugin) -> None:
    """ValueError for what an engine cannot do, as far as it shows before it is connected."""
    made = inspect.signature(engine.function).return_annotation
    kind = engine.function.__globals__.get(made, made) if isinstance(made, str) else made
    if isinstance(kind, type) and not hasattr(kind, "score"):
        raise ValueError(f"engine {engine.name} tells no log-probabilities; take vllm, or teacher")
    if not isinstance(engine.knobs.get("model"), str):
        raise ValueError(f"engine {engine.name} names no model; take one that has a knob `model`")
    if config.method != "top_k" or config.temperatures != [1.0]:
        raise ValueError("an engine tells top_k at temperature 1 alone; name a teacher instead")
    if config.dtype != "float32":
        raise ValueError("dtype is that of a teacher here; set it where the engine is started")


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `distributions`; parts that are there and whole are kept."""
    from limbeck import models
    from limbeck.train import cache
    from limbeck.train.examples import read_lessons

    tokenizer = models.load_tokenizer(config.model)
    num_tokens = max(tokenizer.get_vocab().values()) + 1
    teacher = (_here if config.teacher else _asked)(config, out, num_tokens)
    longest = min(config.max_length, teacher.longest)
    lessons = read_lessons(config.data, tokenizer, longest)
    _refuse_twins(lessons, config.data)
    if warning := unverified(Path(config.data)):
        out.log(warning)
    out.log(_expected(config, lessons, teacher.k, num_tokens))
    folder, parts = out.path / "distributions", cut(lessons.examples)
    whole = _score(teacher, parts, folder, out)
    about = {
        "teacher": signature(config.model),
        "teacher_hash": models.hash_model(config.model),
        "tokenizer": cache.hash_tokenizer(tokenizer),
        "method": config.method,
        "k": teacher.k,
        "temperatures": config.temperatures,
        "longest": longest,
    }
    cache.seal(folder, whole, parts, about)
    return _told(config, lessons, whole, out) | {
        "verified": warning is None,
        "teacher": about["teacher"],
    }


@dataclass(frozen=True)
class Teacher:
    """Who tells the distribution of rows, `k` tokens at each of theirs, `longest` tokens a row.

    `tell` hears which rows and whom to tell of progress. What an engine answers goes through a
    `journal` first.
    """

    tell: Callable[[Sequence[Example], Callable[[int], object]], Distribution]
    k: int
    longest: int
    num_parameters: int
    journal: Journal | None = None


def _here(config: Config, out: StageFolder, num_tokens: int) -> Teacher:
    """A model on this machine."""
    from limbeck import models
    from limbeck.train.head import TokenModel
    from limbeck.train.teacher import ModelTeacher

    assert config.teacher is not None
    loaded = models.load_model(config.teacher, config.dtype, out.machine.device)
    teacher = ModelTeacher(
        TokenModel(loaded.requires_grad_(False)).eval(),
        name=signature(config.teacher),
        method=config.method,
        k=config.num_draws if config.method == "sample" else min(config.num_top, num_tokens),
        temperatures=config.temperatures,
        num_tokens=num_tokens,
        seed=store.seed_of(config.seed, out.name),
        max_tokens=config.micro_batch_tokens,
        device=out.machine.device,
    )
    longest = loaded.config.max_position_embeddings
    return Teacher(teacher.tell, teacher.k, longest, models.num_parameters(loaded))


def _asked(config: Config, out: StageFolder, num_tokens: int) -> Teacher:
    """An engine that tells log-probabilities."""
    from limbeck.train.teacher import EngineTeacher

    assert config.engine is not None
    engine = config.engine()
    if not hasattr(engine, "score"):
        way_out = "take vllm, or name a teacher"
        raise UserError(f"engine {config.engine.name}", "tells no log-probabilities", way_out)
    k = min(config.num_top, num_tokens)
    journal = open_journal(out.path / "distributions", out)
    teacher = EngineTeacher(engine, engine.name, k, num_tokens, journal, out.name)
    longest = getattr(engine, "longest_scored", config.max_length)
    return Teacher(teacher.tell, k, longest, engine.num_parameters or 0, journal)


def cut(examples: Sequence[Example]) -> list[list[Example]]:
    """The rows in parts of about PART_TOKENS learned tokens, in their order."""
    from limbeck.train.teacher import num_learned

    parts: list[list[Example]] = []
    room = 0
    for example in examples:
        if room <= 0:
            parts.append([])
            room = PART_TOKENS
        parts[-1].append(example)
        room -= num_learned(example)
    return parts


def _score(
    teacher: Teacher, parts: Sequence[Sequence[Example]], folder: Path, out: StageFolder
) -> list[Path]:
    """Makes the parts that are missing; gives all of them, in their order."""
    from limbeck.train import cache

    whole = cache.whole_parts(folder, out.log)
    lengths = [sum(len(example.ids) for example in part) for part in parts]
    missing = sum(length for number, length in enumerate(lengths) if number not in whole)
    with out.progress(missing, "tokens") as advance:
        for number, part in enumerate(parts):
            if number in whole:
                continue
            with out.account("distributions part") as row:
                found = teacher.tell(part, advance)
                row |= {"part": number, "tokens_in": lengths[number]}
                row["flops"] = ledger.forward_flops(teacher.num_parameters, lengths[number])
            whole[number] = cache.write_part(folder, number, found)
            if teacher.journal:
                teacher.journal.clear()
    if teacher.journal:
        teacher.journal.remove()
    return [whole[number] for number in range(len(parts))]


# -- telling ------------------------------------------------------------------------------------


def unverified(data: Path) -> str | None:
    """What there is to say of a data set whose rows nobody verified; None where somebody did.

    Somebody did where `curate` kept what its filter `correct` let pass, and where `mix` took from
    such data sets alone.
    """
    stage = next((p for p in data.parents if (p / "stage.json").exists()), None)
    made = store.read_sealed(stage / "stage.json") if stage else {}
    if stage and made["verb"] == "mix":
        paths = made["config"]["parts"].values()
        parts = [stage.parent / path if path.startswith("./") else Path(path) for path in paths]
        return next((told for part in parts if (told := unverified(part))), None)
    name = "/".join(data.parts[-2:])
    if made.get("verb") != "curate":
        return f"nobody verified {name}, as no stage curate wrote it: what is wrong is scored, too"
    if "correct" not in [rule["name"] for rule in made["config"].get("keep", [])]:
        return f"{name} was curated without the filter correct: what is wrong is scored, too"
    return None


def _refuse_twins(lessons: Lessons, where: str) -> None:
    """UserError where two rows could not be told apart."""
    name, num = Counter(example.name for example in lessons.examples).most_common(1)[0]
    if num > 1:
        raise UserError(where, f"has {num} rows of the id {name}", "give each row an id of its own")


def _expected(config: Config, lessons: Lessons, k: int, num_tokens: int) -> str:
    """What is about to be made, and how large it will be."""
    from limbeck.train.teacher import num_learned

    each = 6 * k + 4 * len(config.temperatures)
    tokens = sum(map(num_learned, lessons.examples))
    return (
        f"{len(lessons.examples):,} rows{lessons.left_out}, {tokens:,} tokens to be learned: about "
        f"{_size(tokens * each)}, {each:,} bytes a token, where all {num_tokens:,} "
        f"log-probabilities would take {2 * num_tokens:,}"
    )


def _told(
    config: Config, lessons: Lessons, whole: Sequence[Path], out: StageFolder
) -> dict[str, Any]:
    """What was made, in the log and for the manifest."""
    from limbeck.train import cache, teacher

    size = sum(path.stat().st_size for path in whole)
    tokens = sum(map(teacher.num_learned, lessons.examples))
    out.log(f"{tokens:,} tokens took {_size(size)}, {size / tokens:,.0f} bytes each")
    held: dict[str, float] = {}
    if config.method == "top_k":
        tails = cache.mean_tails(whole)
        held = {f"{t:g}": 1 - tail for t, tail in zip(config.temperatures, tails, strict=True)}
        told = ", ".join(f"{mass:.2%} at temperature {t}" for t, mass in held.items())
        out.log(f"what is kept holds {told} of the teacher's mass")
    return lessons.account(out) | {
        "tokens": tokens,
        "bytes": size,
        "held": held,
    }


def _size(num_bytes: float) -> str:
    unit, factor = next(u for u in UNITS if num_bytes >= u[1] or u[1] == 1)
    return f"{num_bytes / factor:,.1f} {unit}" if factor > 1 else f"{num_bytes:,.0f} {unit}"
