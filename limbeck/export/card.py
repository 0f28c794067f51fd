"""The model card: what a model is, what it was made of, how good it is, and how it is run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from limbeck import secrets, store
from limbeck.export import lineage, making, running
from limbeck.export.lineage import Made, Tried
from limbeck.export.making import UNKNOWN, Source
from limbeck.export.markdown import plain, table
from limbeck.export.proof import MIN_DRAWN

if TYPE_CHECKING:
    from limbeck.packed import Scheme

Row = Mapping[str, Any]


@dataclass(frozen=True)
class About:
    """All that a card tells. `scores` are result rows with the `name` of who was scored; `proofs`
    those of GGUF files by their type."""

    name: str
    kind: str
    num_parameters: int
    context: int | None
    made: list[Made]
    tried: Tried = field(default_factory=lambda: Tried([], []))
    dtype: str = ""
    """What a folder keeps its numbers in, `bfloat16` say; quantized matrices are told apart."""
    dtype_before: str = ""
    """What they were kept in by the model that the scores are of."""
    scheme: Scheme | None = None
    """How a folder's matrices are quantized."""
    origin: str = ""
    """Its name on the hub, where nothing was made of it here."""
    sources: list[Source] = field(default_factory=list)
    teachers: list[str] = field(default_factory=list)
    scores: list[Row] = field(default_factory=list)
    proofs: Mapping[str, Row] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    question: str = ""
    """One printable line that it has learned to answer, if one is known."""


def write(folder: Path, about: About) -> Path:
    """Writes `README.md` into a folder of a model or of GGUF files."""
    front = yaml.safe_dump(front_matter(about), sort_keys=False, allow_unicode=True)
    numbers = f" in {about.dtype}" if about.dtype and not about.scheme else ""
    room = f" with room for {about.context:,} tokens" if about.context else ""
    sections = [
        f"# {plain(about.name)}",
        f"A {about.kind} decoder of {about.num_parameters:,} parameters{numbers}{room}, "
        f"{'made' if about.made else 'exported'} with Limbeck.",
        *_quantized(about),
        *_files(about),
        "## How it was made",
        making.steps(about.made),
        *making.data(about.sources),
        *_results(about),
        *making.costs(about.made, about.tried),
        *_terms(about),
        *(running.run_gguf(about) if about.proofs else running.run_folder(about)),
    ]
    path = folder / "README.md"
    store.write_text(path, secrets.hidden(f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"))
    return path


def front_matter(about: About) -> dict[str, Any]:
    """The metadata that the hub reads."""
    told: dict[str, Any] = {
        "library_name": "gguf" if about.proofs else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["limbeck", *_tags(about)],
        "license": "other",  # whoever publishes it knows; the terms below are what is known here
        "license_name": "see-terms-below",
    }
    if bases := [name for name in bases_of(about) if is_on_hub(name)]:
        told["base_model"] = bases
    names = dict.fromkeys(source.name for source in about.sources)
    if datasets := [name for name in names if is_on_hub(name)]:
        told["datasets"] = datasets
    by_name: dict[str, list[Any]] = {}  # of others, too, which are told to compare with
    for row in about.scores:
        if row["value"] is not None:
            by_name.setdefault(str(row["name"]), []).append(_hub_result(row))
    if by_name:
        told["model-index"] = [{"name": name, "results": of} for name, of in by_name.items()]
    return told


def _tags(about: About) -> Iterator[str]:
    """What is known of it: how a model from elsewhere has learned, nobody here can tell."""
    if about.sources or about.teachers:
        yield from ("reasoning", "distillation")
    if about.proofs:
        yield "gguf"


def bases_of(about: About) -> list[str]:
    """The models from elsewhere that were trained on, or exported as they are."""
    return [about.origin] if about.origin else lineage.strangers(about.made, lineage.BEGINS)


def is_on_hub(name: str) -> bool:
    """Whether it can only be a name there: owner/name, and nothing here is called so."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None and not os.path.exists(name)


def _hub_result(row: Row) -> dict[str, Any]:
    told = {"type": row["metric"], "value": round(row["value"], 6)}
    if row["low"] is not None:
        told["name"] = f"{row['metric']}, 95 % interval {row['low']:.4g} to {row['high']:.4g}"
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": row["split"], "type": row["split"]},
        "metrics": [told],
    }


def _quantized(about: About) -> list[str]:
    """What a reader of the folder has to install."""
    if about.scheme is None or about.proofs:
        return []
    rest = f", and all else as {about.dtype}," if about.dtype else ","
    return [
        f"Quantized: its matrices are kept as {about.scheme.told}{rest} in the format "
        "compressed-tensors, which vLLM reads, and transformers after "
        "`pip install compressed-tensors`."
    ]


def _files(about: About) -> list[str]:
    """The GGUF files, each with what its proof found."""
    if not about.proofs:
        return []
    heads = [
        "file",
        "bytes",
        "mean KL to the model, nats",
        "bound of this mean",
        "equal greedy tokens",
        "widest lead not kept, nats",
        "bound of this lead",
    ]
    rows = [(f"`{kind}.gguf`", f"{about.sizes[kind]:,}", *_proved(about.proofs[kind]["model"]))
            for kind in about.proofs]  # fmt: skip
    words = (
        "llama.cpp writes conversations and reads texts with these files as the model does that "
        "they were written from; of tokens thrown together at random at least "
        f"{100 * MIN_DRAWN:.0f} % are read alike. "
        "Its choice of the next token was compared at every position of short greedy answers: KL "
        "is the mean over the positions. Wherever the model's first choice led its second by more "
        "than the lead told here, llama.cpp chose the same token; where it led by no more, not "
        "always. `proof.json` has all figures."
    )
    return ["## Files", table(heads, rows), words]


def _proved(found: Row) -> Iterator[str]:
    """How near a file is to the model, and the bounds of that."""
    yield f"{found['kl_mean']:.1e}"
    yield f"{found['kl_bound']:g}"
    yield f"{found['greedy_equal']:,} of {found['positions']:,}"
    yield f"{found['greedy_margin']:.2g}" if found["greedy_margin"] else "none"
    yield f"{found['greedy_margin_bound']:g}"


def _results(about: About) -> list[str]:
    if not about.scores:
        return []
    heads = ["model", "split", "metric", "value", "95 % interval", "problems", "tokens an answer"]
    rows = [
        (
            str(row["name"]),
            str(row["split"]),
            str(row["metric"]),
            f"{row['value']:.3f}",
            UNKNOWN if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}",
            f"{row['num_problems']:,}",
            f"{row['tokens_per_answer']:.0f}",
        )
        for row in about.scores
        if row["value"] is not None
    ]
    return ["## Results", table(heads, rows), *_of_another(about)]


def _of_another(about: About) -> list[str]:
    """Where what was measured is not what lies here."""
    if about.proofs:
        return [
            "Measured were models in folders, and not these files, which answer otherwise at "
            "times: the fewer bits, the more often."
        ]
    if about.dtype != about.dtype_before:
        return [f"Measured before its numbers were cast to {about.dtype}."]
    return []


def _terms(about: About) -> list[str]:
    """Whose terms hold, and what nobody knows of them."""
    lines = [
        f"- Base model `{plain(name)}`: its licence holds for what was made of it, too, and is "
        f"{UNKNOWN} here; read it at its source."
        for name in bases_of(about)
    ]
    lines += [
        f"- Teacher `{plain(name)}`: its terms of use hold for training on what it wrote, and are "
        f"{UNKNOWN} here; read them before this model is passed on."
        for name in about.teachers
    ]
    licences = {source.name: source.licence for source in about.sources}
    lines += [
        f"- Data `{plain(name)}`: {plain(licence or f'licence {UNKNOWN}; look it up')}."
        for name, licence in licences.items()
    ]
    if not about.made and not about.origin:
        lines += [f"- Where the model comes from, and under which licence, is {UNKNOWN}."]
    return ["## Licences and terms", "\n".join(lines)] if lines else []
