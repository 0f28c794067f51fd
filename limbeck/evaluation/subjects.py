"""A model under test: a folder, a run's stage, a GGUF file, a name on the hub, or a server."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from limbeck.errors import UserError
from limbeck.guard.gguf import read_gguf
from limbeck.recipe import HUB_NAME

KEY_VARIABLE = "OPENAI_API_KEY"
PATIENCE_S = 10.0
MOST_ROOM = 2048  # tokens kept free for the prompt where a server counts it in
SENSELESS = (ValueError, TypeError, AttributeError, RecursionError)  # of JSON in no known shape

EngineName = Literal["local", "vllm", "openai", "llama_cpp"]


@dataclass(frozen=True)
class Subject:
    """What a model is called in the table, the engine that reaches it as a recipe says it, and how
    many tokens of an answer fit, if that is known."""

    name: str
    engine: dict[str, Any]
    longest: int | None = None

    @property
    def address(self) -> str:
        """The host and port of a server, `localhost:8000`; empty for a model on this machine."""
        return urlsplit(self.engine.get("base_url", "")).netloc


def subjects(
    places: Iterable[str], engine: EngineName | None = None, served: str | None = None
) -> list[Subject]:
    """The models at these places, each with a name of its own: where two have the same, a server's
    says where it is; what is the same even so has a number."""
    found = [subject(place, engine, served) for place in places]
    found = _apart(found, [f"{each.name} {each.address}".strip() for each in found])
    return _apart(found, [f"{each.name} {number}" for number, each in enumerate(found, 1)])


def _apart(found: list[Subject], longer: list[str]) -> list[Subject]:
    """Those whose name another has, too, under their longer ones."""
    names = [each.name for each in found]
    return [
        each if names.count(each.name) == 1 else replace(each, name=name)
        for each, name in zip(found, longer, strict=True)
    ]


def subject(place: str, engine: EngineName | None, served: str | None) -> Subject:
    """`served` names the model behind an address."""
    if "://" in place:
        return _server(place, engine, served)
    if served is not None:
        raise UserError(f"--model {served}", f"{place} is no server", "leave it out, or give a URL")
    if engine == "openai":
        way_out = "give its address, http://localhost:8000/v1 say, and --model"
        raise UserError(f"--engine openai: {place}", "is no server", way_out)
    if file := gguf_in(place):
        return _file(file, engine)
    if engine == "llama_cpp":
        way_out = "export it, or leave --engine out"
        raise UserError(f"--engine llama_cpp: {place}", "is no GGUF file", way_out)
    folder = model_in(place)
    model = str(folder) if folder else place
    return Subject(_name(model), {"name": engine or "local", "model": model}, _context(model))


def model_in(
    place: str, way_out: str = "give a folder, owner/name on the hub, or the address of a server"
) -> Path | None:
    """The model's folder, of a stage its output; None for a name on the hub."""
    folder = Path(place)
    if not folder.is_dir():
        if HUB_NAME.fullmatch(place):
            return None
        raise UserError(f"model {place}", "there is no such folder", way_out)
    if (found := output_in(folder)) != folder or (folder / "config.json").exists():
        return found
    held = sorted(path.parent.name for path in folder.glob("*/model"))
    named = f"name a model's folder, {folder / held[0]} say" if held else way_out
    raise UserError(f"model {place}", "holds no config.json, so no model", named)


def output_in(folder: Path) -> Path:
    """The model of a stage's folder; any other folder itself."""
    inside = folder / "model"
    return inside if not (folder / "config.json").exists() and inside.is_dir() else folder


def gguf_in(place: str) -> Path | None:
    """The GGUF file that is meant, or that lies in an exported folder; None for another model."""
    path = Path(place)
    if path.suffix == ".gguf" or path.is_file():
        return path
    found = sorted([*path.glob("*.gguf"), *path.glob("gguf/*.gguf")])
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise UserError(f"model {place}", f"has {names}", f"name one of them: {found[0]}")
    return found[0] if found else None


def _file(file: Path, engine: EngineName | None) -> Subject:
    if engine not in (None, "llama_cpp"):
        raise UserError(f"--engine {engine}: {file}", "is a GGUF file", "leave --engine out")
    context = read_gguf(file).context
    name = f"{_name(str(file.parent))}/{file.stem}"  # of quickstart-gguf/q8_0.gguf, both
    return Subject(name, {"name": "llama_cpp", "model": str(file)}, context)


def _name(model: str) -> str:
    """The last part that says something: `sft` of `runs/demo/sft/model`."""
    whole = Path(os.path.abspath(model))  # of `.`, too
    parts = [part for part in whole.parts if part not in ("model", "gguf", os.sep)]
    return parts[-1].partition("@")[0] if parts else model


def _context(model: str) -> int | None:
    """How many tokens a model has learned to place; None where its config does not say."""
    config = Path(model) / "config.json"
    try:
        if config.is_file():
            told = json.loads(config.read_text(encoding="utf-8"))
            told = {**told, **(told.get("text_config") or {})}
            return _whole(told.get("max_position_embeddings"))
        from transformers import AutoConfig

        name, _, revision = model.partition("@")
        found = AutoConfig.from_pretrained(name, revision=revision or None, trust_remote_code=False)
        return _whole(getattr(found.get_text_config(), "max_position_embeddings", None))
    except (OSError, ImportError, *SENSELESS):  # what is wrong, the plan will say
        return None


def _whole(said: Any) -> int | None:
    """A number of tokens, if it is one."""
    return said if type(said) is int and said > 0 else None


def _server(url: str, engine: EngineName | None, served: str | None) -> Subject:
    if engine == "local":
        raise UserError(f"--engine local: {url}", "is a server", "leave --engine out")
    address = url.rstrip("/")
    if "/" not in address.partition("://")[2]:
        address += "/v1"
    known = _served(address, is_needed=served is None)
    if served is None:
        if len(known) != 1:
            names = ", ".join(known) or "none"
            what = f"serves {len(known)} models ({names})"
            raise UserError(address, what, "say which with --model")
        served = next(iter(known))
    context = known.get(served)
    longest = context - min(MOST_ROOM, context // 4) if context else None
    reached = {"name": engine or "openai", "model": served, "base_url": address}
    return Subject(_name(served), reached, longest)


def _served(address: str, is_needed: bool) -> dict[str, int | None]:
    """The models that a server says it has, with their contexts where it tells them."""
    from limbeck.engines.http.address import plain_address, read_key
    from limbeck.engines.http.faults import one_line

    try:
        from openai import OpenAI, OpenAIError
    except ImportError as error:
        way_out = "pip install 'limbeck[openai]'"
        raise UserError(address, "the package openai is not installed", way_out) from error
    try:
        key = read_key(KEY_VARIABLE, plain_address(address))
    except ValueError as error:
        what, _, way_out = str(error).partition("; ")
        way_out = way_out or "write it like http://localhost:8000/v1"
        raise UserError(address, what, way_out) from error
    try:
        with OpenAI(
            base_url=address, api_key=key or "none", timeout=PATIENCE_S, max_retries=0
        ) as client:
            return {
                each.id: _whole(getattr(each, "max_model_len", None))
                for each in client.models.list()
                if isinstance(each.id, str) and each.id
            }
    except (OpenAIError, *SENSELESS) as error:
        if not is_needed:
            return {}
        what = f"does not say what it serves ({one_line(error, key)})"
        raise UserError(
            address, what, "check the address, or name the model with --model"
        ) from None
