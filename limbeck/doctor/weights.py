"""What a model's files say of its weights, and of how it is to write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from limbeck import guard
from limbeck.doctor.finding import Said, broken, fine, worth_knowing
from limbeck.doctor.model import Model

HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
NUM_COMPARED = 256  # rows of a head and of the embeddings that it is said to be


def weights(model: Model) -> Iterator[Said]:
    """Whether config, tensors and tokenizer belong together; see `guard.check_model_folder`."""
    if model.rows is not None and model.num_tokens > model.rows:
        return  # `embedding_rows` tells
    guard.check_model_folder(model.folder)
    if model.stored:
        yield fine(f"{guard.num_elements(model.folder):,} numbers in safetensors, as config says")
    else:
        yield worth_knowing("are not in this folder", "fetch them, to have them looked at")


def output_head(model: Model) -> Iterator[Said]:
    """A head that is tied is not read from the files, one that is not has to be in them."""
    if TABLE not in model.stored:
        return
    is_tied = bool(model.config.get("tie_word_embeddings", False))
    if is_tied and HEAD in model.stored and not _head_is_table(model):
        told = f"config.json ties the head to the embeddings, but {HEAD} holds other numbers"
        yield broken(f"{told}, which nobody would read", "set tie_word_embeddings to false")
    elif not is_tied and HEAD not in model.stored:
        told = f"config.json ties no head to the embeddings, and there is no {HEAD}"
        way_out = "set tie_word_embeddings to true, or add the tensor"
        yield broken(f"{told}: it would be drawn at random", way_out)
    else:
        yield fine("tied to the embeddings" if is_tied else "has its own weights")


def _head_is_table(model: Model) -> bool:
    """By the first rows of both."""
    import torch
    from safetensors import safe_open

    rows = []
    for path in sorted(model.folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = {HEAD, TABLE} & {*file.keys()}
            rows += [file.get_slice(name)[:NUM_COMPARED] for name in names]
    return len(rows) == 2 and torch.equal(*rows)


def number_format(model: Model) -> Iterator[Said]:
    """Loaded by what config.json says, weights are rounded where it says less than they hold."""
    said = model.config.get("dtype") or model.config.get("torch_dtype")
    kinds = Counter(tensor.dtype for tensor in model.stored.values() if tensor.dtype in STORED)
    if not kinds or not isinstance(said, str):
        return
    found = STORED[kinds.most_common(1)[0][0]]
    if said == found:
        yield fine(found)
    else:
        told = f"config.json says {said}, the weights are {found}"
        yield worth_knowing(f"{told}: other programs convert them", f"set dtype to {found}")


def generation_settings(model: Model) -> Iterator[Said]:
    """transformers refuses to save a model whose settings contradict each other."""
    from transformers import GenerationConfig

    if not model.generation:
        return
    if model.generation.get("do_sample") and model.generation.get("temperature") == 0:
        told = "generation_config.json samples (do_sample) at temperature 0"
        yield broken(told, "set do_sample to false, or a temperature above 0")
        return
    try:
        GenerationConfig.from_dict(dict(model.generation)).validate(strict=True)
    except (ValueError, TypeError) as error:
        told = f"generation_config.json contradicts itself ({' '.join(str(error).split())[:200]})"
        yield broken(f"{told}: the model could not be saved again", "mend the file")
    else:
        yield fine("no contradiction")
