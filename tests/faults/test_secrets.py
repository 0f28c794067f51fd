"""A key is never told, and what a model wrote drives neither a browser nor a terminal."""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from limbeck import tables
from limbeck.runs import Run
from tests.engines.faulty_server import FaultyServer, Reply, completion, failure

CANARY = "sk-canary-0123456789abcdef"
OTHER = "0123456789abcdefcanary"  # of a provider whose keys look like nothing
RECIPE = {
    "name": "small",
    "machine": {"threads": 1, "device": "cpu"},
    "stages": {
        "collect": {"num": 4, "source": {"name": "file", "path": "questions.jsonl"}},
        "sample": {"problems": "./collect/problems", "num_samples": 2},
        "verify": {"problems": "./collect/problems", "traces": "./sample/traces"},
        "curate": {
            "problems": "./collect/problems",
            "traces": "./sample/traces",
            "verdicts": "./verify/verdicts",
            "keep": ["correct"],
        },
    },
}


def run(folder: Path, *more: str, command: str = "run") -> subprocess.CompletedProcess[bytes]:
    (folder / "no_torch").mkdir(exist_ok=True)
    (folder / "no_torch" / "torch.py").write_text("raise ImportError('not needed here')\n")
    keys = {"OPENAI_API_KEY": CANARY, "OTHER_TOKEN": OTHER, "NO_PROXY": "127.0.0.1"}
    ours = {"PYTHONPATH": str(folder / "no_torch"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "limbeck", command, "recipe.yaml", *more],
        cwd=folder,
        env={**os.environ, **keys, **ours, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        timeout=300,
    )


def prepare(folder: Path, engine: object, questions: list[str] | None = None) -> None:
    stages = {**RECIPE["stages"], "sample": {**RECIPE["stages"]["sample"], "engine": engine}}
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump({**RECIPE, "stages": stages}, sort_keys=False)
    )
    asked = questions or [f"1 + {i}?" for i in range(4)]
    rows = [{"question": q, "answer": str(i + 1)} for i, q in enumerate(asked)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def told(folder: Path, done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """Where a key is to be read: in what was said, or in any byte of any file."""
    places = {"stdout": done.stdout, "stderr": done.stderr}
    for path in (folder / "runs").rglob("*"):
        places[str(path)] = path.read_bytes() if path.is_file() else b""
        if path.suffix == ".parquet":  # its pages are compressed
            rows = tables.read_table(path).to_pylist()
            places[str(path)] += json.dumps(rows, ensure_ascii=False).encode()
    assert len(places) > 2 or not (folder / "runs").exists()
    keys = [CANARY.encode(), OTHER.encode()]
    return [place for place, content in places.items() if any(key in content for key in keys)]


ECHOES = {
    "in an answer": [completion("<think>my key is {key}</think>1")],
    "in an error": [failure(500, "bad key {key}"), failure(429, "{key}")],
    "in HTML": [Reply("<html>{key}</html>", headers={"Content-Type": "text/html"})],
    "in a header's place": [Reply("{key}", 502)],
    "where no request can succeed": [failure(401, "Incorrect API key provided: {key}")] * 9,
}


@pytest.mark.parametrize("name", ECHOES)
def test_a_server_that_echoes_the_key_gets_it_nowhere(tmp_path, name):
    pytest.importorskip("openai")
    with FaultyServer(ECHOES[name], default=completion("<think>so</think>{key} 1")) as server:
        engine = {"name": "openai", "model": "teacher", "base_url": server.url, "concurrency": 1}
        prepare(tmp_path, engine | {"max_attempts": 3})
        done = run(tmp_path)
    assert server.keys and set(server.keys) == {CANARY}  # it did get it, and did echo it
    assert done.returncode == (2 if "no request" in name else 0), done.stderr.decode()
    assert told(tmp_path, done) == []
    if name == "in an answer":
        (trace, *_) = tables.read_table(tmp_path / "runs/small/sample/traces")["text"].to_pylist()
        assert trace == "<think>my key is [key]</think>1"


@pytest.mark.parametrize(
    "knobs",
    [
        {"api_key": CANARY},
        {"api_key": OTHER},
        {"key_variable": CANARY},
        {"key_variable": OTHER},
        {"key_variable": "abcdef0123456789abcdef"},
        {"key_variable": [CANARY]},
        {"model": OTHER},
        {"model": {"name": "m", "key": CANARY}},
        {"base_url": f"https://user:{OTHER}@example.com/v1"},
        {"base_url": f"https://example.com/v1?key={CANARY}"},
        {"base_url": "https://example.com/v1?key=abcdef0123456789abcdef"},
    ],
    ids=str,
)
def test_a_key_in_the_recipe_is_refused_and_not_repeated(tmp_path, knobs):
    prepare(tmp_path, {"name": "openai", "model": "teacher", **knobs})
    refused(tmp_path)


@pytest.mark.parametrize("setting", [f"model={CANARY}", f"api_key={OTHER}", CANARY, f"x={CANARY}["])
def test_a_key_on_the_command_line_is_refused_and_not_repeated(tmp_path, setting):
    prepare(tmp_path, {"name": "openai", "model": "teacher"})
    refused(tmp_path, f"sample.engine.{setting}")


def refused(folder: Path, *more: str) -> None:
    done = run(folder, *more)
    assert done.returncode == 2
    assert b"sample.engine" in done.stderr
    assert b"Traceback" not in done.stderr
    assert told(folder, done) == []
    assert b"abcdef0123456789abcdef" not in done.stderr
    assert not list(folder.glob("runs/*/*.json*"))


HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "</script></pre></style></textarea><svg onload=alert(1)>",
    "{{ 7 * 7 }} {% raw %} ${7*7} <!-- -->",
    '=HYPERLINK("http://evil.example", "click") \t@SUM(1) +1-1|cmd',
    "\x1b[2J\x1b]0;owned\x07\x1b[31mred\x9b31m \x07\x08\r gone",
    "user\u202etxt.exe \u2066hidden\u2069 \u200b\u200f \ufeff",
    "null \x00 line \u2028 par \u2029 private \ue000",
    "[bold red]markup[/] :smile: \\x1b",
]
ENGINE = """
import json
from limbeck.types import Trace

TEXTS = json.loads({texts!r})

class Engine:
    name, num_parameters, costs_money = {name!r}, None, False

    def generate(self, requests, sampling):
        for number, r in enumerate(requests):
            wrong = "" if r.index else r.problem.answer
            text = "<think>" + TEXTS[number % len(TEXTS)] + "</think>" + (wrong or TEXTS[0])
            yield Trace(r.id, r.problem.id, r.index, text, "stop", self.name, 1, 5)

def connect():
    return Engine()
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """A run whose questions, model's name and texts are all hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    prepare(folder, "my_engine:connect", HOSTILE[:4])
    code = ENGINE.format(texts=json.dumps(HOSTILE), name=HOSTILE[0] + HOSTILE[4])
    (folder / "my_engine.py").write_text(code)
    done = run(folder)
    assert done.returncode == 0, done.stderr.decode()
    assert driving((done.stdout + done.stderr).decode()) == set()
    return folder / "runs" / "small"


def driving(text: str) -> set[str]:
    """The characters of a text that a terminal would act upon."""
    acted = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return {c for c in text if unicodedata.category(c) in acted and c not in "\n\t"}


class Page(HTMLParser):
    """The tags and attributes that a browser would see, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def test_the_report_shows_hostile_texts_and_obeys_none(hostile):
    page = (hostile / "report.html").read_text()
    seen = Page(page)
    assert not [tag for tag, _ in seen.tags if tag in ("img", "iframe", "object", "base", "form")]
    assert all("alert(1)" not in str(value) for _, had in seen.tags for value in had.values())
    assert not [key for _, had in seen.tags for key in had if key.startswith("on")]
    assert not [had for _, had in seen.tags if "://evil" in str(had)]
    text = "".join(seen.words)
    assert "<script>alert(1)</script>" in text  # as words that can be read
    assert page.count("<script>alert(1)") == 0
    assert html.escape("<img src=x onerror=alert(1)>") in page
    assert "49" not in text.partition("{{ 7 * 7 }}")[2][:20]
    assert driving(page) == set()


def test_show_prints_nothing_that_drives_a_terminal(hostile):
    traces = tables.read_table(hostile / "sample" / "traces").to_pylist()
    assert {row["index"] for row in traces} == {0, 1}
    worst = next(row["id"] for row in traces if HOSTILE[4] in row["text"])
    for more in ([], ["--json"], [worst], [worst, "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "limbeck", "show", str(hostile), *more],
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr.decode()
        assert driving(done.stdout.decode() + done.stderr.decode()) == set()
    for row in traces:
        assert driving(Run(hostile).story_text(row["id"])) == set()


def test_logs_hold_nothing_that_drives_a_terminal(hostile):
    logs = [path.read_text() for path in hostile.glob("*/log.txt")]
    assert logs
    assert all(driving(log) == set() for log in logs)


def test_errors_hold_nothing_that_drives_a_terminal(tmp_path):
    prepare(tmp_path, "my_engine:connect")
    (tmp_path / "questions.jsonl").write_text('{"\\u001b[2J\\n\\u202e": 1, "question": "?"}\n')
    done = run(tmp_path, command="plan")
    assert done.returncode == 2
    assert driving(done.stderr.decode()) == set()
    done = run(tmp_path, "sample.\x1b[2J=1", "sample.top_p='\u202e\u2028'", command="plan")
    assert done.returncode == 2
    assert driving(done.stderr.decode()) == set()
