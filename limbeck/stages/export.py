"""export: a model for others to run, a Hugging Face folder or GGUF files, with a model card.

A GGUF file is kept only once llama.cpp has been shown to make of it what we make of the model:
what its proof found stands in `gguf/proof.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from limbeck import card as data_card
from limbeck import chat, metrics, sealed, store, tables
from limbeck.config import Extent, ModelPath, ProblemsPath, ScoresPath, StageConfig
from limbeck.errors import UserError
from limbeck.export import card, gguf, lineage, running
from limbeck.export.making import Source
from limbeck.folder import StageFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from limbeck.export import trials
    from limbeck.export.vocabulary import Vocabulary

WRITES = {"model": "model", **{f"gguf/{kind}.gguf": "file" for kind in gguf.TYPES}}
RESUMES = EXTENDS = True
LOOKED_AT = 100  # conversations, for one that opens with a short line

Type = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]


class Config(StageConfig):
    model: ModelPath
    to: Literal["hf", "gguf"]
    """`hf` is a folder that transformers and vLLM load, `gguf` what llama.cpp and Ollama do."""
    quant: Extent[Annotated[list[Type], Field(min_length=1)]] = ["q8_0"]
    """A GGUF file of each type: its matrices in so many bits."""
    prompts: ProblemsPath | None = None
    """Problems of the model's own work, on which each file is proved besides on ours."""
    num_prompts: PositiveInt = 20
    scores: dict[str, ScoresPath] = {}
    """What evaluations say, by the name that the card shall call the model by in its results."""
    name: str = ""
    """What the card calls the model; its stage's name, if nothing is said."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """What a Hugging Face folder keeps its numbers in; null is as they are."""

    @field_validator("quant", mode="before")
    @classmethod
    def _is_written_here(cls, quant: Any) -> Any:
        """Each type once, in small letters: llama.cpp's own tools write them in large ones."""
        if not isinstance(quant, list) or not all(isinstance(kind, str) for kind in quant):
            return quant
        for kind in quant:
            if "_k" in kind.lower():
                way_out = f"export f16, then: llama-quantize f16.gguf {kind}.gguf {kind}"
                raise ValueError(f"{kind} is made by llama.cpp's own tool alone; {way_out}")
        return [*dict.fromkeys(kind.strip().lower() for kind in quant)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.dtype and self.to == "gguf":
            raise ValueError(f"GGUF files have types of their own; drop dtype: {self.dtype}")
        return self


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `model` or `gguf`, each with its card."""
    from limbeck import models
    from limbeck.export import huggingface

    with out.account("export"):
        tokenizer = models.load_tokenizer(config.model)
        about = describe(config, models.load_model(config.model))
        if config.to == "hf":
            place = out.path / "model"
            huggingface.write(config.model, tokenizer, place, config.dtype)
            before = dtype_of(models.folder_of(config.model) or place)
            told = card.About(**about, dtype=dtype_of(place), dtype_before=before)
            card.write(place, told)
        else:
            folder = out.path / "gguf"
            proofs = write_gguf(config, out, tokenizer, about["name"])
            sizes = {kind: (folder / f"{kind}.gguf").stat().st_size for kind in proofs}
            card.write(folder, card.About(**about, proofs=proofs, sizes=sizes))
    return {"num_parameters": about["num_parameters"], "to": config.to}


def write_gguf(
    config: Config, out: StageFolder, tokenizer: PreTrainedTokenizerBase, name: str
) -> dict[str, dict[str, Any]]:
    """A file of each type, proved before it has its name; what was proved before stays. Gives the
    proofs by type."""
    from limbeck.export import llama, ollama, proof, trials

    gguf.library()
    llama.check()
    asked = tables.read_problems(config.prompts)[: config.num_prompts] if config.prompts else []
    talks = proof.taken(tokenizer, trials.conversations(problem.messages for problem in asked))
    folder = out.path / "gguf"
    proofs = proved(folder)
    for begun in folder.glob(".*.gguf.writing"):  # by who was killed, perhaps of another type
        begun.unlink()
    for kind in [kind for kind in config.quant if kind not in proofs]:
        words, proofs[kind] = _write_file(config, out, kind, tokenizer, talks, name)
        told = ollama.modelfile(f"{kind}.gguf", tokenizer, words, talks)
        store.write_text(folder / f"Modelfile.{kind}", told)
        store.write_json(folder / "proof.json", proofs)
    return proofs


def _write_file(
    config: Config,
    out: StageFolder,
    kind: str,
    tokenizer: PreTrainedTokenizerBase,
    talks: Sequence[trials.Turns],
    name: str,
) -> tuple[Vocabulary, dict[str, Any]]:
    """One file and its proof, which rounds the weights: so each has the model loaded anew."""
    from limbeck import models
    from limbeck.export import proof, vocabulary

    model = models.load_model(config.model).eval()
    texts = chat.render_prompts(tokenizer, talks)
    words = vocabulary.read(tokenizer, model.config.vocab_size, texts)
    path = out.path / "gguf" / f"{kind}.gguf"
    aside = path.with_name(f".{path.name}.writing")
    try:
        gguf.write(model, words, kind, aside, name=name, log=out.log)
        found = proof.prove(aside, kind, model, tokenizer, words, talks, out.log)
        found["sha256"] = store.hash_file(aside)
        store.failpoint("export.proved")
        store.commit(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return words, found


def proved(folder: Path) -> dict[str, dict[str, Any]]:
    """The proofs of files that are still what was proved."""
    path = folder / "proof.json"
    told = store.read_json(path) if path.exists() else {}
    return {
        kind: found
        for kind, found in told.items()
        if (file := folder / f"{kind}.gguf").exists() and store.hash_file(file) == found["sha256"]
    }


def describe(config: Config, model: PreTrainedModel) -> dict[str, Any]:
    """What a card tells of the model beside its files."""
    from limbeck import models, packed

    made = lineage.past(Path(config.model))
    folder = models.folder_of(config.model)
    sources, teachers = learned_from(made)
    origin = config.model.partition("@")[0]  # without its revision
    home = lineage.stage_of(Path(config.model).resolve())
    own = f"{home.parent.name}-{home.name}" if home else Path(config.model).name
    return {
        "name": config.name or own,
        "kind": model.config.model_type,
        "num_parameters": models.num_parameters(model),
        "context": getattr(model.config, "max_position_embeddings", None),  # Bloom's has no end
        "scheme": packed.read_scheme(folder) if folder else None,
        "made": made,
        "tried": lineage.tried(Path(config.model)),
        "origin": "" if made or not card.is_on_hub(origin) else origin,
        "sources": sources,
        "teachers": teachers,
        "scores": [row for name, path in config.scores.items() for row in results(name, path)],
        "question": question(config, made),
    }


def learned_from(made: list[lineage.Made]) -> tuple[list[Source], list[str]]:
    """(the sources of each data set in a model's past that others than makers of data sets read,
    who wrote for it): rows that went on into a mixture are told as rows of that."""
    found: list[Source] = []
    licences: dict[str, str] = {}
    teachers = dict.fromkeys(lineage.strangers(made, lineage.TEACHES))
    natives = lineage.natives(made)
    for stage, folder in datasets(made):
        counts = data_card.count(folder)
        teachers |= dict.fromkeys(counts["teacher"])
        data_card.add_licences(licences, data_card.read_licences(folder).items())
        readers = [reader.name for reader in lineage.readers(made, folder)]
        found += [
            Source(name, n, None, stage.name, readers) for name, n in counts["source"].items()
        ]
    known = [
        replace(source, name=source.name or "not named", licence=licences.get(source.name))
        for source in found
    ]
    return known, [name for name in teachers if name and name not in natives]


def datasets(made: list[lineage.Made]) -> Iterator[tuple[lineage.Made, Path]]:
    """The data sets of a past that were not read for other data sets alone, each with its maker."""
    for stage in made:
        folder = stage.path / "dataset"
        read_by = lineage.readers(made, folder) if tables.parts(folder) else []
        if any(not tables.parts(reader.path / "dataset") for reader in read_by):
            yield stage, folder


def question(config: Config, made: list[lineage.Made]) -> str:
    """One that the model knows: of `prompts`, or of the data set that was read last; else none.

    What is asked in a sealed exam is not told.
    """
    given = tables.read_problems(config.prompts) if config.prompts else []
    plain = (problem for problem in given if sealed.MARK not in problem.meta)
    asked = [[asdict(turn) for turn in problem.messages] for problem in islice(plain, LOOKED_AT)]
    folders = [folder for _, folder in datasets(made)]
    read = [folder for reader in made for folder in folders if lineage.readers([reader], folder)]
    if read:
        rows = next(tables.iter_batches(read[-1], ["messages"], rows=LOOKED_AT, again=True))
        asked += rows["messages"].to_pylist()
    return running.first_question(asked)


def dtype_of(folder: Path) -> str:
    """What a model's folder says that its numbers are kept in; nothing, if it does not say."""
    config = store.read_json(folder / "config.json")
    return str(config.get("dtype") or config.get("torch_dtype") or "")


def results(name: str, path: str) -> list[dict[str, Any]]:
    """What a table of scores says of each split and metric."""
    rows = tables.read_table(path).to_pylist()
    if not rows:
        raise UserError(path, "holds no scores", "evaluate the model, or leave it out")
    return [{"name": name, **row} for row in metrics.summarise(rows, ("split", "metric"))]
