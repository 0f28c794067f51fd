"""Runs llama.cpp's own server on one GGUF file, in a process that may die of it.

A script, not a module: it imports nothing of Limbeck. Its one argument is JSON. The server listens
at a socket in a private folder, where nobody but this user can ask it.
"""

import json
import signal
import sys
import threading


def start(settings):  # type: ignore[no-untyped-def]  # xllamacpp is imported when it is needed
    """The server over the file, with all that would change an answer unseen switched off.

    Every row has keys and values of its own, and no prompt is remembered: so what is written beside
    a text is no part of its sums.
    """
    import xllamacpp  # type: ignore[import-untyped]

    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.hostnames = [settings["socket"]]
    params.n_parallel = settings["num_rows"]
    params.n_ctx = settings["context"] * settings["num_rows"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.n_threads_http = settings["num_rows"] + settings["num_askers"]
    params.n_gpu_layers = params.cache_ram_mib = 0
    params.kv_unified = params.cache_prompt = params.ctx_shift = False
    params.fit_params = params.warmup = params.ui = False
    params.special = params.offline = True  # control tokens are text, as <think> may be one
    # The file's own template, which would be run here without any limit, is rendered by us.
    params.chat_template = "chatml"
    params.verbosity = 1  # mistakes
    try:
        return xllamacpp.Server(params)
    except RuntimeError:  # llama.cpp has said why
        sys.exit(1)


def main() -> None:
    server = start(json.loads(sys.argv[1]))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # llama.cpp would tidy up and stay
    threading.Event().wait()
    del server


if __name__ == "__main__":
    main()
