"""Runs what strangers wrote, a chat template or a tokenizer, in a process that may die of it.

A script, not a module: it imports nothing of Limbeck, takes requests as lines of JSON on stdin and
answers each with a line on stdout. The kernel kills it when it takes too much processor time;
memory is limited, and no file can be written.
"""

import json
import resource
import signal
import sys


def limit(seconds: float) -> None:
    """Dies after so many seconds of processor time from now on; 0 is no limit."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def make_environment():  # type: ignore[no-untyped-def]  # jinja2 is imported when it is needed
    """Jinja as transformers sets it up for chat templates."""
    from datetime import datetime

    from jinja2 import exceptions, ext, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(ext.Extension):
        """`{% generation %}` marks what the assistant wrote; nothing here asks for it."""

        tags = {"generation"}

        def parse(self, parser):  # type: ignore[no-untyped-def]
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):  # type: ignore[no-untyped-def]
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    class Names(Namespace):
        """No dunder gets into a namespace, where it could replace what Python itself looks up."""

        def __init__(*args, **kwargs):  # type: ignore[no-untyped-def]
            content = dict(*args[1:], **kwargs)
            for name in content:
                Names.check(name)
            Namespace.__init__(args[0], content)

        def __setitem__(self, name, value):  # type: ignore[no-untyped-def]
            Names.check(name)
            Namespace.__setitem__(self, name, value)

        @staticmethod
        def check(name: object) -> None:
            if isinstance(name, str) and name.startswith("_"):
                raise exceptions.SecurityError(f"a namespace holds no {name!r}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["dict"] = lambda *args, **kwargs: dict(*args, **kwargs)
    environment.globals["namespace"] = Names
    return environment


def render(request, templates={}):  # type: ignore[no-untyped-def]  # compiled ones, by source
    """The texts of a request's conversations."""
    source = request["template"]
    if source not in templates:
        templates[source] = make_environment().from_string(source)
    texts, room = [], request["max_chars"]
    for messages in request["conversations"]:
        text = templates[source].render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=request["add_generation_prompt"],
            **request["special_tokens"],
        )
        room -= len(text)
        if room < 0:
            return {"error": "it writes more than a prompt can need"}
        texts.append(text)
    return {"texts": texts}


def tokenize(request):  # type: ignore[no-untyped-def]
    """What the parent should know of a tokenizer.json, once it has read the probes in time."""
    with open(request["path"], encoding="utf-8") as file:
        content = file.read()
    num_added = content.count('"single_word"')  # a key of each, and sooner counted than parsed
    if num_added > request["max_added"]:
        return {"error": f"it adds {num_added:,} tokens to its vocabulary"}
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(content)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    limit(request["probe_s"])
    for text in request["probes"]:
        tokenizer.encode(text, add_special_tokens=False)
    return {"largest": largest}


def answer(request):  # type: ignore[no-untyped-def]
    try:
        return {"render": render, "tokenize": tokenize}[request["do"]](request)
    except MemoryError:
        return {"error": "it takes more memory than it may", "too_much": True}
    except OverflowError:  # of jinja's sandbox, for a range
        return {"error": "it counts further than it may", "too_much": True}
    except RecursionError:
        return {"error": "it calls itself without end", "too_much": True}
    except BaseException as error:  # a panic of Rust is no Exception
        words = " ".join(str(error).split())[:200]
        return {"error": f"{type(error).__name__}: {words}"}


def main() -> None:
    room = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        limit(request["seconds"])
        reply = json.dumps(answer(request)).encode()
        limit(0)
        sys.stdout.buffer.write(reply + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
