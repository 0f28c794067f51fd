"""A vLLM server to talk to, the command that starts one, and waiting until it can work."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from limbeck.engines.http.faults import one_line, without
from limbeck.engines.local import signature
from limbeck.engines.vllm_server.keeper import KeptProcess
from limbeck.errors import UserError

OLDEST = (0, 32)
POLL_S = 0.5
MAX_RETRIES = 5


class Server:
    """A vLLM server, asked one thing at a time; what it refuses is a UserError."""

    def __init__(self, base_url: str, key: str | None, timeout_s: float) -> None:
        import openai

        self.base_url, self.key, self.timeout_s = base_url, key, timeout_s
        self.where = f"vLLM at {urlsplit(base_url).netloc}"
        self.client = openai.OpenAI(
            base_url=base_url.removesuffix("/").removesuffix("/v1"),
            api_key=key or "none",
            timeout=timeout_s,
            max_retries=MAX_RETRIES,
        )

    def get(self, path: str, way_out: str) -> Any:
        """What stands at a path; `way_out` is told where there is nothing."""
        return self._ask("get", path, way_out)

    def post(self, path: str, body: Mapping[str, Any], way_out: str) -> Any:
        """The answer to a question; `way_out` is told where there is none."""
        return self._ask("post", path, way_out, body=body)

    def _ask(self, method: str, path: str, way_out: str, **body: Any) -> Any:
        import openai

        try:
            return json.loads(getattr(self.client, method)(path, cast_to=str, **body))
        except (openai.OpenAIError, ValueError) as error:  # no JSON
            reason = one_line(error, self.key)
            raise UserError(self.where, f"{path}: {reason}", way_out) from error

    def is_well(self) -> bool | None:
        """Whether it says that it can work; None where nobody answers."""
        import openai

        try:
            self.client.with_options(max_retries=0, timeout=5.0).get("/health", cast_to=str)
        except openai.APIConnectionError as error:
            return False if isinstance(error, openai.APITimeoutError) else None
        except openai.OpenAIError:
            return False
        return True


def whole_command(start: Sequence[str], model: str, base_url: str, dtype: str) -> list[str]:
    """The command with the model behind `serve` and, last and so decisive, what we rely on."""
    name, revision = hub_name(model)
    behind = start.index("serve") + 1
    return [
        *start[:behind],
        name,
        *start[behind:],
        *(["--revision", revision] if revision else []),
        *("--served-model-name", signature(model)),
        *("--host", "127.0.0.1", "--port", str(urlsplit(base_url).port or 80)),
        *("--dtype", dtype, "--load-format", "safetensors"),
        *("--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"),
    ]


def hub_name(model: str) -> tuple[str, str]:
    """(name, revision) of `owner/name@revision`; a folder has no revision."""
    if Path(model).is_dir():
        return model, ""
    name, _, revision = model.partition("@")
    return name, revision


def wait_until_well(server: Server, kept: KeptProcess | None, seconds: float) -> None:
    """Returns once the server can work. UserError if it is not there, ends, or takes longer."""
    deadline = time.monotonic() + seconds
    while True:
        if kept and not kept.is_alive():
            raise ended(server, kept)
        if well := server.is_well():
            return
        if well is None and not kept:
            way_out = "start it with `vllm serve`, give start, or correct base_url"
            raise UserError(server.where, "nobody answers", way_out)
        if time.monotonic() > deadline:
            what = f"is not ready after {seconds:g} s{_said(server, kept) if kept else ''}"
            raise UserError(server.where, what, "give it longer: start_timeout_s")
        time.sleep(POLL_S)


def ended(server: Server, kept: KeptProcess) -> UserError:
    """What to say of a server that was started and is gone."""
    return UserError(server.where, f"has ended{_said(server, kept)}", "mend start, or the model")


def _said(server: Server, kept: KeptProcess) -> str:
    return f"; it said last: {without(kept.last_words(), server.key)} (all of it: {kept.log})"


def refuse_old(server: Server) -> None:
    """UserError for a server older than what Limbeck knows and trusts."""
    told = server.get("/version", "is it vLLM? Correct base_url")
    version = str(told.get("version")) if isinstance(told, dict) else "unknown"
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or tuple(map(int, numbers.groups())) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        way_out = f"pip install --upgrade 'vllm>={wanted}' in its environment"
        raise UserError(server.where, f"is version {version}, which has known holes", way_out)
