"""quantize: a model's matrices in few bits, as transformers, vLLM and the local engine read them.

A way of quantizing is a file of `limbeck/compress/quantize/`. It goes from block to block, and
later blocks see what earlier ones have become. Embeddings, head, norms and biases stay as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import PositiveInt, model_validator

from limbeck import guard, ledger, store
from limbeck.compress.quantize.grid import Grid, uneven
from limbeck.config import DatasetPath, HowRun, ModelPath, StageConfig
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.plugins import QuantizingChoice

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from limbeck.compress.walk import Block, Stats
    from limbeck.packed import Codes, Scheme

WRITES = {"model": "model"}
ROWS = 256  # of a matrix tell what it lost; with all of them it would take as long as GPTQ
WIDTHS = ("hidden_size", "intermediate_size")  # of a config: inputs of matrices

Texts = Sequence[Sequence[int]]


class Config(StageConfig):
    model: ModelPath
    """What is quantized: a model of this run, a folder or a Hub name."""
    method: QuantizingChoice
    """A file of `limbeck/compress/quantize/`: round, gptq or awq."""
    weights: Literal["int8", "int4", "fp8"]
    """What a weight becomes: a whole number of 8 or 4 bits, or a float of 8."""
    group_size: PositiveInt | None = None
    """So many neighbours in a row share a scale, 32 to 128 for int4; null is the whole row."""
    symmetric: bool = True
    """false gives each scale a zero point: finer where weights lean to one side."""
    activations: Literal["int8", "fp8"] | None = None
    """What comes into a matrix is rounded, too, token by token and to what its weights are, by
    whoever runs the model; null leaves it as it is."""
    calibration: DatasetPath | None = None
    """The texts that show what matters, best the model's own verified traces; round alone needs
    none, and reads them only to say what is lost."""
    num_texts: PositiveInt = 128
    """How many of them, drawn by the seed."""
    max_length: PositiveInt = 2048
    """Tokens of a text; what is longer is cut."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """What scales, and all that is not quantized, are kept in; null is as the model's files have
    it."""
    seed: int = 0
    """Draws the texts."""
    max_batch_tokens: HowRun[PositiveInt] = 2048
    """Tokens that go through a block at once."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.calibration is None and self.says("NEEDS_TEXTS", True):
            raise ValueError(f"{self.method.name} needs texts; give calibration: ./stage/dataset")
        if self.activations not in (None, self.weights):
            what = f"{self.activations} activations do not go with {self.weights} weights"
            raise ValueError(f"{what}; take int8 with int8, fp8 with fp8, or null")
        if self.activations or self.weights == "fp8":
            what = f"{self.weights} {'activations' if self.activations else 'weights'}"
            if self.group_size:
                raise ValueError(f"{what} want one scale a row; drop group_size")
            if not self.symmetric:
                raise ValueError(f"{what} have no zero points; drop symmetric")
        if self.group_size and (told := uneven(self.group_size, _widths(Path(self.model)))):
            raise ValueError("; ".join(told))
        return self

    def says(self, word: str, otherwise: bool) -> bool:
        """A constant of the method's file."""
        return bool(getattr(inspect.getmodule(self.method.function), word, otherwise))

    @property
    def scheme(self) -> Scheme:
        from limbeck.packed import Scheme

        return Scheme(self.weights, self.group_size, self.symmetric, self.activations)


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `model`."""
    import torch

    from limbeck import models
    from limbeck.compress import anatomy, packing

    tokenizer = models.load_tokenizer(config.model)
    _refuse_quantized(config)
    model = models.load_model(config.model, None)
    dtype = getattr(torch, config.dtype) if config.dtype else model.dtype
    _refuse_unfit(config, model)
    texts = _texts(config, model, tokenizer, out)
    num_tokens, size = sum(map(len, texts)), models.num_parameters(model)
    rescale = getattr(inspect.getmodule(config.method.function), "rescale", None)
    grid = Grid(config.weights, config.group_size, config.symmetric, dtype)
    codes: dict[str, Codes] = {}
    lost: list[dict[str, float]] = []
    with (
        out.account("quantize") as row,
        out.progress(len(anatomy.blocks(model)), "blocks") as advance,
    ):
        for block in _blocks(config, model, texts, out):
            alphas = {"alphas": rescale(block, grid)} if rescale else {}
            lost.append({})
            for name, matrix in block.matrices.items():
                weight, stats = anatomy.weight_of(matrix), block.stats.get(name)
                found = config.method(weight, stats, grid)
                dense = found.dense()
                lost[-1][name] = loss(weight, dense, stats)
                anatomy.set_weight(matrix, dense)
                codes[f"{block.name}.{name}"] = found.to("cpu")
            out.metric(block=block.index, lost=lost[-1], **alphas)
            advance(1)
        row |= {"tokens_in": num_tokens, "flops": 2 * ledger.forward_flops(size, num_tokens)}
    model.to(dtype)  # type: ignore[arg-type]  # its decorator hides self
    packing.save(model, tokenizer, codes, config.scheme, out.path / "model")
    return _summary(config, codes, lost, size, out)


def _refuse_quantized(config: Config) -> None:
    from limbeck import models, packed

    folder = models.folder_of(config.model)
    if folder and packed.read_scheme(folder):
        way_out = "quantize the model that it was made from"
        raise UserError(f"model {config.model}", "is quantized already", way_out)


def _refuse_unfit(config: Config, model: PreTrainedModel) -> None:
    """UserError for matrices that the format does not know, or that groups leave a rest of."""
    import torch

    from limbeck.compress import anatomy

    matrices = [m for block in anatomy.blocks(model) for m in anatomy.matrices(block).values()]
    if strange := [m for m in matrices if type(m) is not torch.nn.Linear]:
        what = f"keeps its matrices as {type(strange[0]).__name__}, which no quantized folder can"
        way_out = "export it to gguf, or take a model such as Llama or Qwen"
        raise UserError(f"model {config.model}", what, way_out)
    widths = {anatomy.weight_of(matrix).shape[1] for matrix in matrices}
    if config.group_size and (told := uneven(config.group_size, widths)):
        raise UserError("group_size", *told)
    if config.weights == "fp8" and not hasattr(torch, "float8_e4m3fn"):
        raise UserError("weights", f"torch {torch.__version__} has no fp8", "take int8")


def _widths(folder: Path) -> set[int]:
    """Numbers of inputs of matrices, as far as the config in a folder tells them."""
    try:
        said = guard.read_configs(folder)["config.json"] if folder.is_dir() else {}
    except (UserError, KeyError):  # told by whoever looks at the model
        return set()
    return {said[key] for key in WIDTHS if isinstance(said.get(key), int)}


def _texts(
    config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: StageFolder
) -> Texts:
    from limbeck.compress.calibration import read_calibration

    if config.calibration is None:
        return []
    calibration = read_calibration(
        config.calibration,
        model,
        tokenizer,
        num_texts=config.num_texts,
        max_length=config.max_length,
        seed=store.seed_of(config.seed, out.name),
    )
    out.log(f"reads {calibration.told}")
    return calibration.texts


def _blocks(
    config: Config, model: PreTrainedModel, texts: Texts, out: StageFolder
) -> Iterator[Block]:
    """The blocks in order; without texts nothing is known of what comes into them."""
    from limbeck.compress import anatomy
    from limbeck.compress.walk import Block, walk
    from limbeck.sharding import pick_device

    if texts:
        device = pick_device(out.machine.device)
        yield from walk(
            model, texts, device=device, gram=True, max_batch_tokens=config.max_batch_tokens
        )
        return
    modules = zip(anatomy.names(model), anatomy.blocks(model), strict=True)
    for index, (name, module) in enumerate(modules):
        yield Block(index, name, module, anatomy.matrices(module), {}, 0.0)


def loss(weight: Tensor, quantized: Tensor, stats: Stats | None) -> float:
    """What a matrix (out, in) lost: |W X - Q X|² / |W X|², or without an X |W - Q|² / |W|²."""
    some = slice(None, None, -(-len(weight) // ROWS))
    before, after = weight[some].float(), quantized[some]
    gone = before - after
    if stats is None or stats.gram is None:
        error, whole = gone.square().sum(), before.square().sum()
    else:
        error, whole = ((part @ stats.gram * part).sum() for part in (gone, before))
    return float(error / whole) if whole else 0.0


def _summary(
    config: Config,
    codes: dict[str, Codes],
    lost: list[dict[str, float]],
    size: int,
    out: StageFolder,
) -> dict[str, Any]:
    from limbeck import packed

    num_bytes = guard.num_bytes(out.path / "model")
    num_weights = sum(matrix.codes.numel() for matrix in codes.values())
    packs = (packed.pack(matrix, config.scheme) for matrix in codes.values())
    bits = 8 * sum(part.nbytes for pack in packs for part in pack.values()) / num_weights
    mean = {name: fmean(block[name] for block in lost) for name in lost[0]}
    out.log(f"{num_weights:,} of {size:,} parameters in {bits:.2f} bits each: {num_bytes:,} bytes")
    worst = max(mean, key=lambda name: mean[name])
    of = "what comes out" if config.calibration else "the weights"
    shares = [f"{100 * share:.2g} %" for share in (fmean(mean.values()), mean[worst])]
    out.log(f"of {of} {shares[0]} is lost, most in {worst}: {shares[1]}")
    if config.weights == "fp8":
        out.log("fp8 is quick on GPUs that compute in it (H100, L40, RTX 4090), elsewhere small")
    return {
        "model": config.model,
        "num_parameters": size,
        "num_bytes": num_bytes,
        "bits_per_weight": bits,
        "lost": mean,
    }
