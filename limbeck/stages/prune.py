"""prune: a model loses what matters least to its own texts, single weights or whole units.

A way of pruning is a file of `limbeck/compress/prune/`. Those with `prune_weight` set single
weights to zero, block by block, and later blocks see what earlier ones have become. Those with
`prune_model` take out layers, heads or neurons, which leaves an ordinary smaller model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from limbeck import ledger, store
from limbeck.compress import MOST
from limbeck.config import DatasetPath, HowRun, ModelPath, StageConfig
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.plugins import PruningChoice

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from limbeck.compress.walk import Block, Stats

WRITES = {"model": "model"}

Sparsity = Annotated[float, Field(gt=0, lt=1)]
Texts = Sequence[Sequence[int]]


class Config(StageConfig):
    model: ModelPath
    """What is pruned: a model of this run, a folder or a Hub name."""
    method: PruningChoice
    """A file of `limbeck/compress/prune/`: magnitude, wanda, sparsegpt, depth or width."""
    sparsity: Sparsity | None = None
    """The share of the blocks' weights that goes; embeddings and head stay as they are."""
    pattern: str | None = None
    """In the place of a sparsity: `2:4` leaves 2 of each 4 neighbours in a row, as some GPUs want
    it."""
    budget: Literal["layer", "global"] = "layer"
    """`layer` takes the same share of each matrix; `global` whatever is least important in the
    whole model, but of no matrix more than 95 %."""
    calibration: DatasetPath | None = None
    """The texts that show what matters, best the model's own verified traces; magnitude alone
    needs none."""
    num_texts: PositiveInt = 128
    """How many of them, drawn by the seed."""
    max_length: Annotated[int, Field(ge=2)] = 2048
    """Tokens of a text; what is longer is cut."""
    scan: list[Sparsity] = []
    """Also tells, for each block and each of these sparsities, how much worse the model finds a
    fifth of the texts if that block alone is pruned with the help of the others."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model is held, computed and saved in; what is summed up is float32."""
    seed: int = 0
    """Draws the texts."""
    max_batch_tokens: HowRun[PositiveInt] = 2048
    """Tokens that go through a block at once."""

    @field_validator("pattern")
    @classmethod
    def _is_pattern(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            stay, _, width = pattern.partition(":")
            if not (stay.isdecimal() and width.isdecimal() and 0 < int(stay) < int(width)):
                raise ValueError(f"{pattern!r} leaves not some of some neighbours; take 2:4 or 4:8")
        return pattern

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.pattern and self.sparsity not in (None, self.share):
            what = f"a pattern of {self.pattern} is a sparsity of {self.share:g}"
            raise ValueError(f"{what}, not {self.sparsity:g}; drop sparsity")
        if not self.pattern and self.sparsity is None:
            raise ValueError("needs a sparsity, or a pattern; give one of the two")
        if self.pattern and self.budget == "global":
            raise ValueError("a pattern leaves as much of each matrix; drop budget: global")
        if self.budget == "global" and self.share > MOST:
            what = f"a global budget takes {MOST:.0%} of a matrix at most, {self.share:g} is more"
            raise ValueError(f"{what}; take less, or drop budget: global")
        unfit = [name for name in ("pattern", "scan") if getattr(self, name)]
        unfit += ["budget"] if self.budget == "global" else []
        if self.takes_units and unfit:
            what = f"{self.method.name} takes out whole units, {unfit[0]} speaks of single weights"
            raise ValueError(f"{what}; drop {unfit[0]}, or take wanda or sparsegpt")
        if self.budget == "global" and not hasattr(self._file, "importance"):
            what = f"the file of {self.method.name} has no function `importance` to compare by"
            raise ValueError(f"{what}; write one, or drop budget: global")
        if self.calibration is None and (self.needs_texts or self.scan):
            who = self.method.name if self.needs_texts else "a scan"
            raise ValueError(f"{who} needs texts; give calibration: ./stage/dataset")
        return self

    @property
    def _file(self) -> Any:
        return inspect.getmodule(self.method.function)

    @property
    def takes_units(self) -> bool:
        """Whether the way of pruning is given the whole model."""
        return next(iter(inspect.signature(self.method.function).parameters)) == "model"

    @property
    def needs_texts(self) -> bool:
        return bool(getattr(self._file, "NEEDS_TEXTS", True))

    @property
    def needs_gram(self) -> bool:
        return not self.takes_units and bool(getattr(self._file, "NEEDS_GRAM", True))

    @property
    def num_passes(self) -> int:
        """How often a text goes through each block: before and after it is pruned, and before all
        of that where the whole model decides."""
        return 1 if self.takes_units else 3 if self.budget == "global" else 2

    @property
    def kept(self) -> tuple[int, int] | None:
        """(2, 4) of a pattern 2:4."""
        if self.pattern is None:
            return None
        stay, _, width = self.pattern.partition(":")
        return int(stay), int(width)

    def importance(self, weight: Tensor, stats: Stats | None) -> Tensor:
        """What the way of pruning compares weights by, (out, in)."""
        scores: Tensor = self._file.importance(weight, stats, **self.method.knobs)
        return scores

    @property
    def share(self) -> float:
        """The sparsity, whichever way it was said."""
        if self.kept:
            return 1 - self.kept[0] / self.kept[1]
        assert self.sparsity is not None
        return self.sparsity


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `model`, and `scan/scan.json` where a scan was asked for."""
    from limbeck import models
    from limbeck.compress import anatomy
    from limbeck.compress.walk import walk
    from limbeck.sharding import pick_device

    tokenizer = models.load_tokenizer(config.model)
    model = models.load_model(config.model, config.dtype)
    blocks = anatomy.blocks(model)
    _refuse_uneven(config, blocks)
    texts = _texts(config, model, tokenizer, out)
    shown = texts if config.needs_texts else []
    device, gram = pick_device(out.machine.device), config.needs_gram
    see = partial(walk, device=device, gram=gram, max_batch_tokens=config.max_batch_tokens)
    if config.scan:
        model.to(device)  # type: ignore[arg-type]  # its decorator hides self
        _scan(config, model, texts, see, out)
        model.to("cpu")  # type: ignore[arg-type]
    num_before, size = sum(w.numel() for w in _weights(model)), models.num_parameters(model)
    with out.account("prune") as row, out.progress(len(blocks), "blocks") as advance:
        if config.takes_units:
            seen = []
            for block in see(model, shown, changes=False):
                seen.append(block)
                advance(1)
            model = config.method(model, seen, config.share)
        else:
            shares = _shares(config, see(model, shown, changes=False))
            for block in see(model, shown):
                _prune(config, block, shares)
                advance(1)
        row["tokens_in"] = num_tokens = sum(map(len, shown))
        row["flops"] = config.num_passes * ledger.forward_flops(size, num_tokens)
    models.save_model(model, tokenizer, out.path / "model")
    sparsity = 1 - sum(int(w.count_nonzero()) for w in _weights(model)) / num_before
    out.log(f"{sparsity:.1%} of {num_before:,} weights are gone")
    files = (out.path / "model").glob("*.safetensors")
    return {
        "num_parameters": models.num_parameters(model),
        "num_bytes": sum(file.stat().st_size for file in files),
        "sparsity": sparsity,
        "num_texts": len(shown),
    }


def _prune(config: Config, block: Block, shares: Mapping[str, float]) -> None:
    """Sets weights of a block's matrices to zero, of each the share that goes."""
    from limbeck.compress import anatomy

    for name, matrix in block.matrices.items():
        weight, stats = anatomy.weight_of(matrix), block.stats.get(name)
        share = shares[f"{block.name}.{name}"] if shares else config.share
        anatomy.set_weight(matrix, config.method(weight, stats, share, config.kept))


def _shares(config: Config, dense: Iterable[Block]) -> dict[str, float]:
    """What share of which matrix goes, where a global budget decides; `dense` is the whole model.

    Empty where each loses as much.
    """
    from limbeck.compress import anatomy, thresholds

    if config.budget == "layer":
        return {}
    sketches = {
        f"{block.name}.{name}": thresholds.sketch(
            config.importance(anatomy.weight_of(matrix), block.stats.get(name))
        )
        for block in dense
        for name, matrix in block.matrices.items()
    }
    shares = thresholds.sparsities(list(sketches.values()), config.share)
    return dict(zip(sketches, shares, strict=True))


def _scan(
    config: Config,
    model: PreTrainedModel,
    texts: Texts,
    see: Callable[..., Iterator[Block]],
    out: StageFolder,
) -> None:
    """Writes `scan/scan.json`: `levels`, the `dense` loss, and each block's rise at each level."""
    from limbeck.compress import sensitivity

    def prune_to(block: Block, level: float) -> None:
        alone = config.model_copy(update={"sparsity": level, "pattern": None})
        _prune(alone, block, {})

    with out.account("scan"), out.progress(model.config.num_hidden_layers, "blocks") as advance:
        held, others = sensitivity.held_back(texts)
        dense = sensitivity.loss(model, held)
        rows = []
        for block in see(model, others, changes=False):
            found = sensitivity.losses(model, block, held, config.scan, prune_to)
            rises = [loss - dense for loss in found]
            rows.append({"index": block.index, "name": block.name, "loss": rises})
            advance(1)
    told = {"levels": config.scan, "dense": dense, "blocks": rows}
    store.write_json(out.path / "scan" / "scan.json", told)


def _texts(
    config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: StageFolder
) -> list[list[int]]:
    """What the model is calibrated on; nothing where nobody reads it."""
    from limbeck.compress.calibration import read_calibration

    if config.calibration is None or not (config.needs_texts or config.scan):
        return []
    found = read_calibration(
        config.calibration,
        model,
        tokenizer,
        num_texts=config.num_texts,
        max_length=config.max_length,
        seed=store.seed_of(config.seed, out.name),
    )
    out.log(f"calibrated on {found.told}")
    return found.texts


def _weights(model: PreTrainedModel) -> Iterator[Tensor]:
    """Those of the blocks' matrices."""
    from limbeck.compress import anatomy

    for block in anatomy.blocks(model):
        yield from map(anatomy.weight_of, anatomy.matrices(block).values())


def _refuse_uneven(config: Config, blocks: nn.ModuleList) -> None:
    """UserError for a matrix whose rows a pattern does not divide."""
    from limbeck.compress import anatomy

    width = config.kept[1] if config.kept else 1
    for name, matrix in anatomy.matrices(blocks[0]).items():
        if rest := anatomy.weight_of(matrix).shape[1] % width:
            what = f"{config.pattern} leaves a rest of {rest} in the rows of {name}"
            raise UserError("pattern", what, "take one that divides them, or a sparsity")
