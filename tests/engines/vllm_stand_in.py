"""A loopback server that answers as the documentation of vLLM 0.32 and 0.33 says, for tests.

A small model behind it really writes, so that tokens and log-probabilities can be checked. Started
as a script it takes the command line of `vllm serve`, as far as Limbeck uses it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

CUT_OFF = -9999.0
MAX_LOGPROBS = 20
NEUTRAL: Mapping[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}


def small_model(
    folder: Path, context: int = 96, opened: str = "", end_of_turn: str = "<|end|>"
) -> Path:
    """A folder with a fresh model that babbles; its end of a sequence is `<|end|>`.

    Its template writes `opened` behind a prompt, and `end_of_turn` behind an assistant's message.
    """
    from limbeck import models, newborn

    texts = (f"What is {a} + {b} - {a}? {a}+{b}={a + b}" for a in range(30) for b in range(30))
    template = newborn.CHAT_TEMPLATE.replace("'<|assistant|>'", f"'<|assistant|>{opened}'")
    template = template.replace("<|end|>", end_of_turn)
    tokenizer = newborn.train_tokenizer(texts, 320, chat_template=template)
    model = newborn.create_model(
        "llama",
        len(tokenizer),
        0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,  # texts that differ from each other
        tie_word_embeddings=True,
    )
    models.save_model(model, tokenizer, folder)
    return folder


class Refused(Exception):
    """An answer with an error's status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Written:
    """A text with its tokens, and log-probabilities (tokens, V) of each of its places."""

    text: str
    ids: list[int]
    logprobs: list[Tensor]
    finish: str


@dataclass
class StandIn:
    """Serves the model in `folder` at `url` while it is entered.

    `defaults` is what the model's generation_config.json would say, which a server applies where a
    request says nothing. `requests` are (path, body) of what it was asked, `keys` the keys.
    """

    folder: Path
    name: str = ""
    port: int = 0
    key: str | None = None
    version: str = "0.33.0"
    root: str = ""
    template: str | None = None
    logprobs_mode: str = "raw_logprobs"
    dev_mode: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    num_unwell: int = 0
    requests: list[tuple[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    is_paused: bool = False

    def __post_init__(self) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(self.folder)
        self.model = AutoModelForCausalLM.from_pretrained(self.folder).eval()
        self.context = self.model.config.max_position_embeddings
        self.lock = threading.Lock()
        self.name = self.name or str(self.folder)
        self.root = self.root or str(self.folder)
        self.http = _Http(("127.0.0.1", self.port), _Handler)
        self.http.owner = self
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self) -> StandIn:
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    def answer(self, address: str, body: Any, key: str) -> Any:
        """What the server says; `body` is None for a GET."""
        path = urlsplit(address).path
        with self.lock:
            self.requests.append((address, body))
            self.keys.append(key)
            if self.key is not None and path.startswith("/v1") and key != self.key:
                raise Refused(401, "Unauthorized")
            if path.startswith("/v1") and body is not None and self.is_paused:
                raise Refused(503, "Request failed; please retry")
            for known, reply in (self.plain | (self.dev if self.dev_mode else {})).items():
                if path == known:
                    return reply(self, body, parse_qs(urlsplit(address).query))
        raise Refused(404, "Not Found")

    def health(self, *_: Any) -> Any:
        self.num_unwell -= 1
        if self.num_unwell >= 0:
            raise Refused(503, "")
        return None

    def show_version(self, *_: Any) -> Any:
        return {"version": self.version}

    def models(self, *_: Any) -> Any:
        card = {"id": self.name, "root": self.root, "max_model_len": self.context}
        return {"object": "list", "data": [card]}

    def chat(self, body: Any, _: Any) -> Any:
        """A chat completion, with what is asked for beside it."""
        self._refuse_other_model(body)
        template = {"chat_template": self.template} if self.template else {}
        prompt = self.tokenizer.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=True, **template
        )
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        written = self._write(ids, body, body.get("max_tokens"))
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": written.text, "reasoning": None},
            "finish_reason": written.finish,
            "logprobs": self._told(written, body) if body.get("logprobs") else None,
            "token_ids": written.ids if body.get("return_token_ids") else None,
        }
        return {
            "choices": [choice],
            "usage": {"prompt_tokens": len(ids), "completion_tokens": len(written.ids)},
            "prompt_token_ids": ids if body.get("return_token_ids") else None,
            "prompt_text": prompt if body.get("return_prompt_text") else None,
        }

    def complete(self, body: Any, _: Any) -> Any:
        """A completion of a prompt that is token ids, with the prompt's log-probabilities."""
        self._refuse_other_model(body)
        ids, num = body["prompt"], body.get("prompt_logprobs")
        if num is not None and num > MAX_LOGPROBS:
            raise Refused(400, f"Requested prompt logprobs of {num}, greater than {MAX_LOGPROBS}")
        written = self._write(ids, body, body.get("max_tokens", 16))
        choice = {"index": 0, "text": written.text, "finish_reason": written.finish}
        if num is not None:
            choice["prompt_logprobs"] = self._prompt_logprobs(ids, num)
        return {"choices": [choice]}

    def pause(self, _: Any, query: Mapping[str, list[str]]) -> Any:
        assert query["mode"] == ["wait"]
        self.is_paused = True
        return {"status": "paused"}

    def resume(self, *_: Any) -> Any:
        self.is_paused = False
        return {"status": "resumed"}

    def reset_prefix_cache(self, *_: Any) -> Any:
        return {"success": True}

    def collective_rpc(self, body: Any, _: Any) -> Any:
        """Only reload_weights: all safetensors files of a folder, by checkpoint names."""
        if body["method"] != "reload_weights" or not self.is_paused:
            raise Refused(500, "Internal Server Error")
        files = sorted(Path(body["kwargs"]["weights_path"]).glob("*.safetensors"))
        for file in files:
            known, new = self.model.state_dict(), load_file(file)
            if set(new) - set(known):
                raise Refused(500, "Internal Server Error")
            self.model.load_state_dict(new, strict=False)
        if not files:
            raise Refused(500, "Internal Server Error")
        return {"results": [None]}

    plain = {
        "/health": health,
        "/version": show_version,
        "/v1/models": models,
        "/v1/chat/completions": chat,
        "/v1/completions": complete,
    }
    dev = {
        "/pause": pause,
        "/resume": resume,
        "/reset_prefix_cache": reset_prefix_cache,
        "/collective_rpc": collective_rpc,
    }

    def _refuse_other_model(self, body: Any) -> None:
        if body.get("model") != self.name:
            raise Refused(404, f"The model `{body.get('model')}` does not exist.")

    def _write(self, prompt: list[int], body: Any, max_tokens: int | None) -> Written:
        """Token by token, the whole text read anew for each: slow and plain."""
        if len(prompt) >= self.context or (max_tokens or 1) > self.context:
            raise Refused(400, f"This model's maximum context length is {self.context} tokens.")
        knobs = {
            name: body.get(name) if body.get(name) is not None else self.defaults.get(name, neutral)
            for name, neutral in NEUTRAL.items()
        }
        ends = {self.tokenizer.eos_token_id, *(body.get("stop_token_ids") or ())}
        generator = torch.Generator().manual_seed(body.get("seed") or 0)
        written = Written("", [], [], "length")
        room = min(max_tokens or self.context, self.context - len(prompt))
        while len(written.ids) < room:
            logits = self._logits(prompt + written.ids)[-1]
            token, logprobs = self._draw(logits, prompt + written.ids, knobs, generator)
            written.ids.append(token)
            written.logprobs.append(logprobs)
            if token in ends:
                written.finish = "stop"
                break
            text = self._text(written.ids, body)
            places = [text.find(stop) for stop in body.get("stop") or () if stop in text]
            if places:
                written.text, written.finish = text[: min(places)], "stop"
                return written
        said = written.ids[:-1] if written.finish == "stop" else written.ids
        written.text = self._text(said, body)
        return written

    def _draw(
        self,
        logits: Tensor,
        before: list[int],
        knobs: Mapping[str, Any],
        generator: torch.Generator,
    ) -> tuple[int, Tensor]:
        """(token, log-probabilities (V,) in the server's mode): min-p, then top-k, then top-p."""
        raw = logits.log_softmax(-1)
        seen = torch.tensor(sorted(set(before)))
        penalty = knobs["repetition_penalty"]
        logits = logits.clone()
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        if knobs["temperature"] == 0:
            return int(logits.argmax()), raw
        logits = logits / knobs["temperature"]
        probabilities = logits.softmax(-1)
        logits[probabilities < knobs["min_p"] * probabilities.max()] = -torch.inf
        if knobs["top_k"] > 0:
            kept = logits.topk(min(knobs["top_k"], len(logits))).indices
            logits = torch.full_like(logits, -torch.inf).scatter(0, kept, logits[kept])
        if knobs["top_p"] < 1:
            order = logits.argsort(descending=True)
            sums = logits[order].softmax(-1).cumsum(-1)
            logits[order[1:][sums[:-1] >= knobs["top_p"]]] = -torch.inf
        token = int(torch.multinomial(logits.softmax(-1), 1, generator=generator))
        return token, raw if self.logprobs_mode == "raw_logprobs" else logits.log_softmax(-1)

    @torch.inference_mode()
    def _logits(self, ids: list[int]) -> Tensor:
        return self.model(torch.tensor([ids])).logits[0].float()

    def _text(self, ids: list[int], body: Any) -> str:
        skips = body.get("skip_special_tokens", True)
        return str(self.tokenizer.decode(ids, skip_special_tokens=skips))

    def _told(self, written: Written, body: Any) -> Any:
        """The log-probabilities of a chat completion's tokens and of what was likeliest there."""
        content = []
        for token, logprobs in zip(written.ids, written.logprobs, strict=True):
            likeliest = logprobs.topk(body.get("top_logprobs", 0))
            pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
            top = [self._named(id, logprob) for id, logprob in pairs]
            content.append({**self._named(token, float(logprobs[token])), "top_logprobs": top})
        return {"content": content}

    def _named(self, id: int, logprob: float) -> dict[str, Any]:
        return {"token": self.tokenizer.decode([id]), "logprob": max(logprob, CUT_OFF)}

    def _prompt_logprobs(self, ids: list[int], num: int) -> list[Any]:
        told: list[Any] = [None]
        logprobs = self._logits(ids).log_softmax(-1)
        for token, row in zip(ids[1:], logprobs, strict=False):
            ranks = {token: 1 + int((row > row[token]).sum())}
            ranks |= {id: rank for rank, id in enumerate(row.topk(num).indices.tolist(), 1)}
            told.append(
                {str(id): {"logprob": float(row[id]), "rank": r} for id, r in ranks.items()}
            )
        return told


class _Http(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True
    block_on_close = False
    owner: StandIn


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Http

    def do_GET(self) -> None:
        self._reply(None)

    def do_POST(self) -> None:
        self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]) or 0) or b"{}"))

    def _reply(self, body: Any) -> None:
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        status, answer = 200, None
        try:
            answer = self.server.owner.answer(self.path, body, key)
        except Refused as refused:
            status = refused.status
            answer = {"error": {"message": str(refused), "type": "", "param": None, "code": status}}
        payload = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


def main(arguments: list[str]) -> None:
    """`serve MODEL …`: serves until it is ended."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("verb", choices=["serve"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--served-model-name", default="")
    parser.add_argument("--host", choices=["127.0.0.1"], required=True)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--dtype", choices=["auto", "float32"], default="auto")
    parser.add_argument("--load-format", choices=["safetensors"], required=True)
    parser.add_argument("--generation-config", choices=["vllm"], required=True)
    parser.add_argument("--logprobs-mode", default="raw_logprobs")
    told = parser.parse_args(arguments)
    torch.set_num_threads(1)
    stand_in = StandIn(
        told.model,
        name=told.served_model_name,
        port=told.port,
        key=os.environ.get("VLLM_API_KEY"),
        logprobs_mode=told.logprobs_mode,
        dev_mode=os.environ.get("VLLM_SERVER_DEV_MODE") == "1",
    )
    print("Application startup complete.", flush=True)
    stand_in.http.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
