"""Publishing, against a stand-in for the Hub that speaks what is used of its protocol."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import limbeck
from limbeck import card, store, tables
from limbeck.errors import UserError
from limbeck.publish import publish

pytest.importorskip("huggingface_hub")

TOKEN = "hf_of-nobody-and-for-nothing"
OID = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """Keeps repositories in memory; `server.refuses` is a status with which it answers writers."""

    def do_GET(self):
        server = self.server
        kind, _, name = self.path.split("?")[0].removeprefix("/api/").partition("/")
        name, _, rest = name.partition("/tree/")
        name = name.partition("/revision/")[0]
        repo = server.repos.get((kind, name))
        if repo is None:
            return self.reply(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})
        if rest:
            files = [
                {"type": "file", "path": path, "size": len(data), "oid": OID}
                for path, data in repo["files"].items()
            ]
            return self.reply(200, files)
        siblings = [{"rfilename": path} for path in repo["files"]]
        about = {"id": name, "private": repo["private"], "sha": OID, "siblings": siblings}
        return self.reply(200, about)

    def do_POST(self):
        server, body = self.server, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self.chunks()
        server.tokens.add(self.headers.get("Authorization"))
        path = self.path.split("?")[0]
        server.asked.append(path)
        if path == "/api/validate-yaml":
            errors = [{"message": "no"}] if b"license: wrong" in body else []
            return self.reply(400 if errors else 200, {"errors": errors, "warnings": []})
        if server.refuses:
            return self.reply(server.refuses, {"error": "no"})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        kind, _, rest = path.removeprefix("/api/").partition("/")
        name, verb = "/".join(rest.split("/")[:2]), rest.split("/")[2]
        if verb == "preupload":
            files = json.loads(body)["files"]
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            return self.reply(200, {"files": [{"path": f["path"], **plain} for f in files]})
        if verb == "commit":
            return self.commit(server.repos[kind, name], body)
        return self.reply(404, {"error": f"the stand-in does not know {path}"})

    def create(self, wanted):
        key = (f"{wanted.get('type', 'model')}s", f"{wanted['organization']}/{wanted['name']}")
        url = f"{self.server.url}/{'datasets/' if key[0] == 'datasets' else ''}{key[1]}"
        if key in self.server.repos:
            return self.reply(409, {"error": "it is there", "url": url})
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.server.repos[key] = {"files": {}, "private": bool(private), "url": url}
        return self.reply(200, {"url": url, "name": key[1]})

    def commit(self, repo, body):
        files = repo["files"]
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
            else:
                assert operation["key"] == "header", operation
        about = {"commitOid": OID, "commitUrl": f"{repo['url']}/commit/{OID}"}
        return self.reply(200, {"success": True, **about})

    def chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def reply(self, status, value, headers=None):
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, told in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, told)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.repos, server.tokens, server.asked, server.refuses = {}, set(), [], None
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def row(number):
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": f"{number}"}]
    about = {"domain": "d", "source": "s", "teacher": "t", "weight": 1.0}
    return {"id": f"r{number}", "problem_id": "p", "messages": turns, **about}


def finished(stage):
    store.write_sealed(stage / "stage.json", {"files": store.hash_tree(stage)})


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "demo" / "curate" / "dataset"
    tables.write_part(folder, tables.to_table("dataset", [row(1), row(2)]))
    card.write(folder, name="demo", sampled=2, dropped={}, licences={"s": "mit"}, lineage=[])
    finished(folder.parent)
    return folder


def test_a_data_set_is_pushed_whole_and_privately(hub, folder, capfd):
    (folder / ".left.tmp").write_text("of a kill")
    url = publish(folder, "we/demo")
    repo = hub.repos["datasets", "we/demo"]
    assert repo["private"] is True
    assert url == f"{hub.url}/datasets/we/demo"
    names = ["README.md", tables.parts(folder)[0].name]
    assert repo["files"] == {name: (folder / name).read_bytes() for name in names}
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in "".join(capfd.readouterr())


def test_a_new_version_takes_the_place_of_the_old(hub, folder):
    publish(folder, "we/demo")
    old = tables.parts(folder)[0]
    old.unlink()
    new = tables.write_part(folder, tables.to_table("dataset", [row(3)]))
    finished(folder.parent)
    publish(folder, "we/demo")
    assert set(hub.repos["datasets", "we/demo"]["files"]) == {"README.md", new.name}


def test_what_everybody_sees_is_not_written_to_unasked(hub, folder):
    publish(folder, "we/demo", private=False)
    assert hub.repos["datasets", "we/demo"]["private"] is False
    publish(folder, "we/demo", private=False)
    asked = len(hub.asked)
    with pytest.raises(UserError, match=r"for everybody to see; say --public"):
        publish(folder, "we/demo")
    assert not any("commit" in path for path in hub.asked[asked:])


def test_a_model_is_pushed_as_a_model(hub, tmp_path):
    folder = tmp_path / "demo" / "export" / "model"
    store.write_json(folder / "config.json", {})
    finished(folder.parent)
    with pytest.raises(UserError, match="has no card"):
        publish(folder, "we/model")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    finished(folder.parent)
    assert publish(folder, "we/model") == f"{hub.url}/we/model"
    assert set(hub.repos["models", "we/model"]["files"]) == {"README.md", "config.json"}


def test_what_was_exported_out_of_a_run_is_pushed_with_a_completed_card(hub, tmp_path):
    folder = tmp_path / "demo-gguf"
    folder.mkdir()
    (folder / "q8_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="has no card"):
        publish(folder, "we/gguf")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A file\n")
    publish(folder, "we/gguf")
    assert set(hub.repos["models", "we/gguf"]["files"]) == {"README.md", "q8_0.gguf"}


def test_a_model_of_a_stage_that_is_not_finished_stays_here(hub, tmp_path):
    folder = tmp_path / "demo" / "export" / "model"
    store.write_json(folder / "config.json", {})
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (folder.parent / "ledger.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="is of no finished stage"):
        publish(folder, "we/model")
    assert hub.asked == []


def test_what_is_not_finished_or_not_whole_stays_here(hub, folder, tmp_path):
    (folder / "README.md").write_text("edited")
    with pytest.raises(UserError, match=r"README.md: changed on disk"):
        publish(folder, "we/demo")
    (folder.parent / "stage.json").unlink()
    with pytest.raises(UserError, match="is of no finished stage"):
        publish(folder, "we/demo")
    with pytest.raises(UserError, match="is no folder"):
        publish(tmp_path / "nowhere", "we/demo")
    assert hub.asked == []


def test_what_is_neither_stays_here(hub, folder):
    (folder.parent / "decisions").mkdir()
    row = {"trace_id": "t", "problem_id": "p", "dropped": None}
    tables.write_part(folder.parent / "decisions", tables.to_table("decisions", [row]))
    finished(folder.parent)
    with pytest.raises(UserError, match="neither a data set nor a model"):
        publish(folder.parent / "decisions", "we/demo")
    (folder / "README.md").unlink()
    finished(folder.parent)
    with pytest.raises(UserError, match="has no card"):
        publish(folder, "we/demo")
    assert hub.asked == []


@pytest.mark.parametrize("name", ["demo", "a/b/c", "we/..", "we/de mo", "we/a--b", "", "/demo"])
def test_names_that_the_hub_does_not_know(hub, folder, name):
    with pytest.raises(UserError, match=r"--to .*organisation/name"):
        publish(folder, name)
    assert hub.asked == []


def test_nobody_is_logged_in(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", " ")
    with pytest.raises(UserError, match="HF_TOKEN: is not set"):
        publish(folder, "we/demo")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "does not accept the token"),
        (403, "does not let this token write there"),
        (400, "says 400"),
    ],
)
def test_the_hub_refuses(hub, folder, status, message):
    hub.refuses = status
    with pytest.raises(UserError, match=message) as caught:
        publish(folder, "we/demo")
    assert TOKEN not in str(caught.value)


def test_the_hub_objects_to_the_card(hub, folder):
    card = folder / "README.md"
    card.write_text(card.read_text().replace("license: mit", "license: wrong"))
    finished(folder.parent)
    with pytest.raises(UserError, match=r"metadata.*mend the card"):
        publish(folder, "we/demo")


def test_the_network_is_down(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="cannot be reached"):
        publish(folder, "we/demo")


def test_what_is_pushed_is_what_datasets_reads(hub, tmp_path):
    datasets = pytest.importorskip("datasets")
    source = {"name": f"{__name__}:lines"}
    recipe = {"name": "r", "stages": {"general": {"source": source, "num": 9}}}
    run = limbeck.run(recipe, run=tmp_path / "run")
    publish(run.path / "general" / "dataset", "we/demo")
    for name, content in hub.repos["datasets", "we/demo"]["files"].items():
        store.write_text(tmp_path / "copy" / name, "")
        (tmp_path / "copy" / name).write_bytes(content)
    copy, cache = str(tmp_path / "copy"), str(tmp_path / "cache")
    rows = datasets.load_dataset(copy, split="train", cache_dir=cache)
    assert [m[-1]["content"] for m in rows["messages"]] == ["0.", "1.", "2."]


def lines():
    for number in range(3):
        yield f"mine:{number}", {"question": f"{number}?", "answer": f"{number}."}
