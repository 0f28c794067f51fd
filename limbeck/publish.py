"""Pushes a run's data set or model, or what `limbeck export` wrote, to the Hugging Face Hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbeck import secrets, store, tables
from limbeck.errors import UserError

TOKEN = "HF_TOKEN"
LEDGER = "ledger.jsonl"  # of a stage that has begun
HTTP = ("httpx", "httpx2", "httpcore", "requests", "urllib3")  # who speaks for huggingface_hub
SAID = {  # of a status: what it means and the way out
    401: ("does not accept the token", f"make a new one and put it into {TOKEN}"),
    403: ("does not let this token write there", "take a token that may, or another name"),
    404: ("does not let this token write there", "take a token that may, or another name"),
}


def publish(folder: Path, to: str, *, private: bool = True) -> str:
    """Makes `to` (organisation/name) on the Hub, if it is not there, and puts the folder into it.

    The folder is what its finished stage wrote, to the byte, or a model that was exported out of
    its run, whose card may have been completed since; it has a card. Parts of an earlier
    version that are no longer in it are taken away. The token is read from HF_TOKEN alone, the
    Hub's address from HF_ENDPOINT. Returns where it lies. UserError for what a user can mend.
    """
    folder = folder.resolve()
    kind = check(folder)
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id
    except ImportError as error:
        way_out = "pip install 'limbeck[hub]'"
        raise UserError("publish", "needs the package huggingface_hub", way_out) from error
    try:
        validate_repo_id(to)
    except HFValidationError as error:
        what = f"is no name for the Hub ({error})"
        raise UserError(f"--to {to}", what, "write organisation/name") from error
    if to.count("/") != 1:
        raise UserError(f"--to {to}", "names no organisation", "write organisation/name")
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        way_out = f"make one that may write at huggingface.co/settings/tokens, set it as {TOKEN}"
        raise UserError(TOKEN, "is not set: nobody is logged in to the Hub", way_out)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    with _told(to):
        url = api.create_repo(to, repo_type=kind, private=private, exist_ok=True)
        if private and not api.repo_info(to, repo_type=kind).private:
            way_out = "say --public, or choose another name"
            raise UserError(f"--to {to}", "is there already, for everybody to see", way_out)
        api.upload_folder(
            repo_id=to,
            repo_type=kind,
            folder_path=folder,
            commit_message=f"{_origin(folder)}, by Limbeck",
            ignore_patterns=[".*", "**/.*"],
            delete_patterns=["part-*.parquet"] if kind == "dataset" else None,
        )
    return str(url)


def check(folder: Path) -> str:
    """Whether it is a `dataset` or a `model`; UserError if it is neither, or not fit to be seen."""
    if not folder.is_dir():
        raise UserError(str(folder), "is no folder", "give one like runs/demo/curate/dataset")
    is_model = (folder / "config.json").exists() or any(folder.glob("*.gguf"))
    is_of_stage = (folder.parent / "stage.json").exists()
    if not is_of_stage and (not is_model or (folder.parent / LEDGER).exists()):
        way_out = "give an output of a stage, and let limbeck run finish it"
        raise UserError(str(folder), "is of no finished stage", way_out)
    store.verify(folder)
    if tables.parts(folder) and "messages" in _columns(folder):
        kind = "dataset"
    elif is_model:
        kind = "model"
    else:
        raise UserError(str(folder), "is neither a data set nor a model", "give one of these")
    if not (folder / "README.md").exists():
        what = "has no card: nobody would know what it is, or under which licence"
        raise UserError(str(folder), what, "make it with curate, general, mix or export")
    return kind


def _origin(folder: Path) -> str:
    """The run and stage that wrote it, or the name of what was exported."""
    stage = folder.parent
    return f"{stage.parent.name}/{stage.name}" if (stage / "stage.json").exists() else folder.name


def _columns(folder: Path) -> list[str]:
    import pyarrow.parquet as pq

    names: list[str] = pq.read_schema(tables.parts(folder)[0]).names
    return names


@contextmanager
def _told(to: str) -> Iterator[None]:
    """What the Hub, or the way to it, objects to, as a UserError."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        what, way_out = SAID.get(status, (f"says {status}: {_first(error)}", "try again later"))
        raise UserError(f"--to {to}", f"the Hub {what}", way_out) from None
    except ValueError as error:
        if "metadata" not in str(error):
            raise
        what = " ".join(secrets.hidden(str(error)).split())
        raise UserError("README.md", f"the Hub objects: {what}", "mend the card") from None
    except Exception as error:  # whichever library speaks HTTP has its own
        if not (isinstance(error, OSError) or type(error).__module__.split(".")[0] in HTTP):
            raise
        what = f"the Hub cannot be reached ({type(error).__name__}: {_first(error)})"
        raise UserError(
            f"--to {to}", what, "check the network and HF_ENDPOINT, try again"
        ) from None


def _first(error: Any) -> str:
    lines = secrets.hidden(str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__
