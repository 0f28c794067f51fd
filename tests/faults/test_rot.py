"""A bit flips in a file at rest: the file is named, or every value is the same."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import limbeck
from limbeck import store, tables
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.journal import Journal
from tests.faults.small import RECIPE

torch = pytest.importorskip("torch")
pytest.importorskip("reasoning_gym")

from limbeck import models  # noqa: E402
from limbeck.engines.journaled import open_journal  # noqa: E402
from limbeck.train.checkpoint import load_newest, save_checkpoint  # noqa: E402
from limbeck.train.head import TokenModel  # noqa: E402
from limbeck.train.step import make_optimizer  # noqa: E402

SEED = 20261121
IN_CI = 100


@dataclass
class Case:
    """A kind of file: where some lie, and the reader that everybody uses.

    `read` gives the values, or (values, what was said of a file that was passed over). `allowed`
    are values that may come back once a file has been named: an older checkpoint's, all records
    but one.
    """

    files: list[Path]
    read: Callable[[], Any]
    allowed: Callable[[Any], bool] = lambda _: False


@dataclass
class Result:
    """What came of the flips of one kind; `wrong` must stay empty."""

    detected: int = 0
    harmless: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.detected:,} detected and named, {self.harmless:,} harmless, " + (
            f"{len(self.wrong):,} wrong"
        )


def flip(case: Case, num: int, seed: int) -> Result:
    """Flips one random bit of a random file, reads, puts it back, `num` times."""
    rng, result, expected = random.Random(seed), Result(), case.read()
    contents = {path: path.read_bytes() for path in case.files}
    for _ in range(num):
        path = rng.choice(case.files)
        place, bit = rng.randrange(len(contents[path])), rng.randrange(8)
        flipped = bytearray(contents[path])
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        _judge(case, expected, path, f"{path.name} byte {place} bit {bit}", result)
        path.write_bytes(contents[path])
    return result


def damage(case: Case, fault: str, path: Path, expected: Any) -> Result:
    """Truncates, empties, removes or swaps one whole file, reads, puts it back."""
    result, content = Result(), path.read_bytes()
    other = next((p for p in case.files if p != path and p.read_bytes() != content), path)
    others = other.read_bytes()
    if fault == "missing":
        path.unlink()
    elif fault == "swapped":
        path.write_bytes(others)
        other.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2] if fault == "truncated" else b"")
    _judge(case, expected, path, f"{path.name} {fault}", result, other)
    path.write_bytes(content)
    other.write_bytes(others)
    return result


def _judge(
    case: Case, expected: Any, path: Path, what: str, result: Result, other: Path | None = None
) -> None:
    try:
        values, said = case.read()
    except UserError as error:
        values, said = None, str(error)
    except Exception as error:  # a traceback is no message
        result.wrong.append(f"{what}: {error!r}")
        return
    named = any(str(p) in said or str(p.parent) in said for p in (path, other or path))
    if values == expected[0]:
        result.harmless += 1
    elif named and (values is None or case.allowed(values)):
        result.detected += 1
    else:
        result.wrong.append(f"{what}: {said or 'silent'}")


# -- the kinds ----------------------------------------------------------------------------------


def run(folder: Path) -> Path:
    """A finished run, whose files are at stake."""
    limbeck.run(copy.deepcopy(RECIPE), run=folder)
    return folder


def finished_tables(run: Path, scratch: Path) -> Case:
    folders = sorted({part.parent for part in run.rglob("part-*.parquet")})
    return Case([p for f in folders for p in tables.parts(f)], lambda: (_rows(folders), ""))


def unfinished_tables(run: Path, scratch: Path) -> Case:
    """Parts of stages that have not ended: no manifest knows them."""
    names = ("collect/problems", "sample/traces", "verify/verdicts", "evaluate/scores")
    for name in names:
        shutil.copytree(run / name, scratch / name)
    folders = [scratch / name for name in names]
    return Case([p for f in folders for p in tables.parts(f)], lambda: (_rows(folders), ""))


def _rows(folders: list[Path]) -> list[Any]:
    return [tables.read_table(folder).to_pylist() for folder in folders]


def journal(run: Path, scratch: Path) -> Case:
    rows = tables.read_table(run / "bought/traces").to_pylist()
    path = scratch / "traces.journal"
    filled = Journal(path)
    for row in rows:
        filled.append(row)
    content = path.read_bytes()

    def read() -> tuple[list[Any], str]:
        flipped = path.read_bytes() if path.exists() else b""
        opened = open_journal(path.with_suffix(""), StageFolder(scratch, "bought"))
        said = (scratch / "log.txt").read_text() if (scratch / "log.txt").exists() else ""
        (scratch / "log.txt").unlink(missing_ok=True)
        path.write_bytes(flipped)  # opening has mended it
        return opened.records, said

    assert content == path.read_bytes()
    # A lost record is asked for again; a wrong one would never be noticed.
    return Case([path], read, lambda found: found == [r for r in rows if r in found])


def manifests(run: Path, scratch: Path) -> Case:
    files = [run / "recipe.json", *sorted(run.glob("*/stage.json"))]
    files += sorted(run.glob("*/started.json"))
    return Case(files, lambda: ([store.read_sealed(path) for path in files], ""))


def models_(run: Path, scratch: Path) -> Case:
    folders = [run / "create" / "model", run / "sft" / "model"]

    def read() -> tuple[Any, str]:
        values = []
        for folder in folders:
            model, tokenizer = models.load_model(folder), models.load_tokenizer(folder)
            weights = {k: v.tolist() for k, v in model.state_dict().items()}
            ids = tokenizer("1+1=2 dogs")["input_ids"]
            values.append((weights, model.config.to_dict(), ids, tokenizer.chat_template))
        return values, ""

    return Case([p for f in folders for p in sorted(f.iterdir())], read)


def checkpoints(run: Path, scratch: Path) -> Case:
    """Two of them; the older one is whole, and is what remains when the newer one is not."""
    model = TokenModel(models.load_model(run / "sft" / "model"))
    optimizer = make_optimizer(model, 0.01)
    for step in (1, 2):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.1 * step)
        optimizer.step()
        save_checkpoint(scratch, step, model, optimizer, {"step": step})

    def read() -> tuple[Any, str]:
        fresh = TokenModel(models.load_model(run / "create" / "model"))
        moments = make_optimizer(fresh, 0.5)
        with _warnings() as said:
            state = load_newest(scratch, fresh, moments)
        weights = [p.tolist() for p in fresh.parameters()]
        inner = [{k: v.tolist() for k, v in m.items()} for m in moments.state.values()]
        return (state, weights, inner, moments.param_groups[0]["lr"]), "\n".join(said)

    newest = scratch / "step-000002"
    aside = newest.rename(scratch / "aside")
    older, _ = read()
    aside.rename(newest)
    return Case(sorted(newest.iterdir()), read, lambda found: found == older)


class _warnings:
    """What is logged inside, as a list."""

    def __enter__(self) -> list[str]:
        import logging

        said: list[str] = []
        self.handler = logging.Handler()
        self.handler.emit = lambda record: said.append(record.getMessage())  # type: ignore
        logging.getLogger("limbeck.train.checkpoint").addHandler(self.handler)
        return said

    def __exit__(self, *_: object) -> None:
        import logging

        logging.getLogger("limbeck.train.checkpoint").removeHandler(self.handler)


KINDS: dict[str, Callable[[Path, Path], Case]] = {
    "parts of finished stages": finished_tables,
    "parts of unfinished stages": unfinished_tables,
    "journal": journal,
    "manifests": manifests,
    "checkpoints": checkpoints,
    "models": models_,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("rot") / "run")


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_is_noticed_or_harmless(
    finished: Path, tmp_path: Path, kind: str
) -> None:
    result = flip(KINDS[kind](finished, tmp_path), IN_CI, SEED)
    assert not result.wrong, result.wrong[:5]
    assert result.detected > IN_CI / 2


def every_damage(case: Case) -> Iterator[tuple[str, Result]]:
    """Each fault on each file of a kind."""
    expected = case.read()
    for fault in ("missing", "truncated", "empty", "swapped"):
        for path in case.files:
            if fault != "swapped" or len(case.files) > 1:
                yield f"{path.name} {fault}", damage(case, fault, path, expected)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("journal", "manifests")])
def test_whole_files_that_are_missing_cut_empty_or_swapped(
    finished: Path, tmp_path: Path, kind: str
) -> None:
    for what, result in every_damage(KINDS[kind](finished, tmp_path)):
        assert not result.wrong, (what, result.wrong)


@pytest.mark.parametrize("fault", ["missing", "truncated", "empty", "swapped"])
def test_manifests_that_are_missing_cut_empty_or_swapped(
    finished: Path, tmp_path: Path, fault: str
) -> None:
    """A stage without its manifest is not finished; with another's it is another's."""
    names = list(RECIPE["stages"])
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        broken = shutil.copytree(finished, tmp_path / name)
        manifest, stranger = (broken / stage / "stage.json" for stage in (name, other))
        content = manifest.read_bytes()
        if fault == "missing":
            manifest.unlink()
        elif fault == "swapped":
            manifest.write_bytes(stranger.read_bytes())
            stranger.write_bytes(content)
        else:
            manifest.write_bytes(content[: len(content) // 2] if fault == "truncated" else b"")
        if fault in ("missing", "swapped"):
            states = {s.stage.name: s.state for s in limbeck.plan(RECIPE, run=broken)}
            assert states[name] in {"missing": ("new", "resume"), "swapped": ("stale",)}[fault]
        else:
            with pytest.raises(UserError, match=rf"{name}/stage\.json: is no JSON any more"):
                limbeck.plan(RECIPE, run=broken)


def test_started_is_needed_only_while_a_stage_is_not_finished(
    finished: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(finished, tmp_path / "run")
    for name in RECIPE["stages"]:
        (broken / name / "started.json").unlink()
    assert {step.state for step in limbeck.plan(RECIPE, run=broken)} == {"done"}
    (broken / "bought" / "stage.json").unlink()
    with pytest.raises(UserError, match=r"bought/started\.json: is missing.*--redo bought"):
        limbeck.run(copy.deepcopy(RECIPE), run=broken)
    assert tables.parts(broken / "bought" / "traces")  # nothing that was paid for is thrown away


def unseal(run: Path, *stages: str) -> None:
    """As a kill would leave these stages: everything written, no manifest."""
    for stage in stages:
        (run / stage / "stage.json").unlink()


def test_a_broken_part_of_an_unfinished_stage_is_made_again(finished: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(finished, tmp_path / "run")
    places = ["sample/traces", "verify/verdicts", "evaluate/greedy", "evaluate/pass_at_1"]
    unseal(broken, "sample", "verify", "evaluate")
    for place in places:
        (part,) = tables.parts(broken / place)
        content = bytearray(part.read_bytes())
        content[-20] ^= 8  # in the footer, which page checksums do not cover
        part.write_bytes(content)
    limbeck.run(copy.deepcopy(RECIPE), run=broken)
    for place in places:
        assert store.hash_tree(broken / place) == store.hash_tree(finished / place)
        (part,) = tables.parts(broken / place)
        log = (broken / place.partition("/")[0] / "log.txt").read_text()
        assert f"{part} changed on disk since it was written; its rows are made again" in log


def test_a_broken_part_that_was_paid_for_is_not_bought_again_unasked(
    finished: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(finished, tmp_path / "run")
    unseal(broken, "bought")
    (part,) = tables.parts(broken / "bought" / "traces")
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=rf"{part.name}: changed on disk.*or delete it"):
        limbeck.run(copy.deepcopy(RECIPE), run=broken)
    part.unlink()
    limbeck.run(copy.deepcopy(RECIPE), run=broken)
    assert store.hash_tree(part.parent) == store.hash_tree(finished / "bought" / "traces")


def test_a_part_taken_out_of_the_middle_comes_back_in_its_place(tmp_path: Path) -> None:
    row = {"correct": True, "extracted": "1", "reason": "correct"}
    rows = [[{"trace_id": name, **row}] for name in "abc"]
    written = [tables.write_part(tmp_path, tables.to_table("verdicts", part)) for part in rows]
    written[1].unlink()
    assert tables.write_part(tmp_path, tables.to_table("verdicts", rows[1])) == written[1]
    assert [row["trace_id"] for row in tables.read_table(tmp_path).to_pylist()] == ["a", "b", "c"]


def test_results_that_changed_are_not_shown(finished: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(finished, tmp_path / "run")
    results = broken / "compare" / "results" / "results.json"
    results.write_text(results.read_text().replace("0.0", "0.9", 1))
    with pytest.raises(UserError, match=r"results\.json: changed on disk"):
        limbeck.open(broken).results()


def test_a_broken_description_of_the_run_is_written_again(finished: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(finished, tmp_path / "run")
    (broken / "recipe.json").write_text('{"name": "sma')
    with pytest.raises(UserError, match=r"recipe\.json: is no JSON any more .*; delete it"):
        limbeck.run(copy.deepcopy(RECIPE), run=broken)
    (broken / "recipe.json").unlink()
    limbeck.run(copy.deepcopy(RECIPE), run=broken)
    assert store.read_sealed(broken / "recipe.json") == store.read_sealed(finished / "recipe.json")


def test_a_torn_line_of_a_ledger_gives_way_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    store.append_json(path, {"work": "a"})
    with path.open("ab") as file:
        file.write(json.dumps({"work": "b", "note": "x" * 9000}).encode()[:-5])
    store.append_json(path, {"work": "c"})
    assert store.read_jsonl(path) == [{"work": "a"}, {"work": "c"}]
    path.write_bytes(path.read_bytes().replace(b'"a"', b'"a', 1))
    with pytest.raises(UserError, match=r"ledger\.jsonl:1: "):
        store.read_jsonl(path)
