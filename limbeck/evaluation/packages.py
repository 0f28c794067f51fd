"""Packages that an evaluation needs, looked for before anybody is asked anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec

from limbeck.errors import UserError

EXTRAS = {  # what `pip install 'limbeck[extra]'` brings a package
    "datasets": "hub",
    "langdetect": "ifeval",
    "math_verify": "math",
    "openai": "openai",
    "torch": "local",
    "transformers": "local",
    "xllamacpp": "gguf",
}
OF_ENGINES = {
    "llama_cpp": ["xllamacpp"],
    "local": ["torch", "transformers"],
    "openai": ["openai"],
    "vllm": ["openai"],
}
OF_VERDICTS = {  # what the verifiers of these benchmarks ask
    "aime24": ["math_verify"],
    "aime25": ["math_verify"],
    "ifeval": ["langdetect"],
    "math500": ["math_verify"],
}


def missing(engines: Iterable[str], files: Mapping[str, str | None]) -> Iterator[UserError]:
    """A mistake for each package that is not here, with all that need it; `files` has the file of
    each benchmark, None where it is read from the hub."""
    needed = [
        (f"engine {each}", package) for each in engines for package in OF_ENGINES.get(each, [])
    ]
    for name, file in files.items():
        needed += [(f"--on {name}", package) for package in OF_VERDICTS.get(name, [])]
        needed += [(f"--on {name}", "datasets")] if file is None else []
    for package in dict.fromkeys(package for _, package in needed):
        if find_spec(package) is None:
            where = ", ".join(dict.fromkeys(who for who, what in needed if what == package))
            way_out = f"pip install 'limbeck[{EXTRAS[package]}]'"
            yield UserError(where, f"the package {package} is not installed", way_out)
