"""Runs llama.cpp on one GGUF file, in a process that may die of it.

A script, not a module: it imports nothing of Limbeck. The first line on stdin says which file, each
further one asks; every line is JSON and is answered by one on stdout. llama.cpp's own server does
the work: it listens on this machine alone, behind a random key that nobody else knows.
"""

import http.client
import json
import os
import resource
import secrets
import sys


def start(settings):  # type: ignore[no-untyped-def]  # xllamacpp is imported when it is needed
    """The server over the file, and what to ask it by.

    One thread, and nothing that trades exactness for speed: sums depend on neither.
    """
    import xllamacpp  # type: ignore[import-untyped]

    params = xllamacpp.CommonParams()
    params.model.path = settings["path"]
    params.n_ctx = settings["context"]
    params.n_batch = params.n_ubatch = min(512, settings["context"])
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_gpu_layers = 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup = params.ui = params.ctx_shift = params.fit_params = False
    params.offline = params.endpoint_props = True
    params.hostnames = ["127.0.0.1"]
    key = secrets.token_urlsafe(32)
    params.api_keys = [key]
    server = xllamacpp.Server(params)
    line = http.client.HTTPConnection(server.listening_address.removeprefix("http://"))
    return server, lambda path, body=None: asked(line, key, path, body)


def asked(connection, key, path, body=None):  # type: ignore[no-untyped-def]
    """The server's answer; RuntimeError with its words where it refuses."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    content = None if body is None else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, content, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status} {text[:300]}")
    return json.loads(text)


def render(ask, request):  # type: ignore[no-untyped-def]
    return [ask("/apply-template", {"messages": turns})["prompt"] for turns in request["turns"]]


def tokenize(ask, request):  # type: ignore[no-untyped-def]
    """Control tokens are read; the one that opens every text, if there is one, is left out."""
    about = {"add_special": False, "parse_special": True}
    return [ask("/tokenize", {"content": t, **about})["tokens"] for t in request["texts"]]


def detokenize(ask, request):  # type: ignore[no-untyped-def]
    return [ask("/detokenize", {"tokens": ids})["content"] for ids in request["ids"]]


def greedy(ask, request):  # type: ignore[no-untyped-def]
    """For each prompt the steps of its greedy answer: what is likeliest, with its log-probs.

    The server keeps a token's probabilities to itself where its bytes are no whole letter; so each
    step is asked for alone and answered with a plain token, by a bias that the probabilities are
    free of. The likeliest of them goes on.
    """
    answers = []
    for prompt in request["prompts"]:
        ids, steps = list(prompt), []  # type: ignore[var-annotated]
        while len(steps) < request["num_tokens"] and ids[-1] != request["end"]:
            body = {"prompt": ids, "n_predict": 1, "n_probs": request["num_probs"]}
            forced = {"logit_bias": [[request["plain"], 1e6]], "temperature": 0.0}
            found = ask("/completion", body | forced)["completion_probabilities"][0]
            likeliest = found["top_logprobs"]
            steps.append([[each["id"], each["logprob"]] for each in likeliest])
            ids.append(likeliest[0]["id"])
        answers.append(steps)
    return answers


def stops(ask, request):  # type: ignore[no-untyped-def]
    """Whether an answer that begins with a token is over with it."""
    body = {"prompt": [request["token"]], "n_predict": 2, "cache_prompt": False}
    forced = {"logit_bias": [[request["token"], 1e6]], "temperature": 0.0}
    return ask("/completion", body | forced)["stop_type"] == "eos"


def special(ask, request):  # type: ignore[no-untyped-def]
    """The texts of the tokens that begin and end a text."""
    told = ask("/props")
    return {name: told[f"{name}_token"] for name in ("bos", "eos")}


def limit(num_bytes):  # type: ignore[no-untyped-def]
    """What it may write to: a stranger's template shall not take the machine's memory."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    room = num_bytes if most == resource.RLIM_INFINITY else min(num_bytes, most)
    resource.setrlimit(resource.RLIMIT_DATA, (room, room))


def main() -> None:
    reply_to = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # llama.cpp has much to say
    does = {
        "render": render,
        "tokenize": tokenize,
        "detokenize": detokenize,
        "greedy": greedy,
        "special": special,
        "stops": stops,
    }
    server = ask = None
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            if server is None:
                limit(request["memory"])
                server, ask = start(request)
                reply = {"said": "ready"}
            else:
                reply = {"said": does[request["do"]](ask, request)}
        except Exception as error:
            reply = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:400]}
        reply_to.write(json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main()
