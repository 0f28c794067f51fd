"""The doctor finds what is broken, by name and with a way out, and nothing where nothing is."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from limbeck import cli, doctor
from limbeck import recipe as recipes
from limbeck.doctor import Finding, of_recipe
from limbeck.doctor.setup import Setup
from limbeck.errors import UserError
from tests.doctor.broken import (
    CASES,
    QUESTIONS,
    Case,
    examining,
    learning,
    lessons,
    make_model,
    make_tokenizer,
    recipe,
)


def found_by(
    case: Case, place: Path, is_broken: bool, monkeypatch: pytest.MonkeyPatch
) -> list[Finding]:
    with monkeypatch.context() as patch:
        subject = case.build(place, is_broken, patch)
        return doctor.examine(str(subject), run=place / "run")


def test_the_corpus_is_large_enough() -> None:
    assert len(CASES) >= 24
    assert sum(not case.is_worth_knowing for case in CASES) >= 20
    assert all("#" in case.thread for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.build.__name__)
def test_what_is_broken_is_named_and_its_twin_is_not(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "mended").mkdir()
    found = found_by(case, tmp_path / "broken", True, monkeypatch)
    told = [finding for finding in found if finding.ok is False]
    if case.is_worth_knowing:
        assert told == []
        told = [f for f in found if f.ok is None and f.name == case.name]
    assert {finding.name for finding in told} == {case.name}
    assert all(len(finding.told.split()) > 3 for finding in told)
    assert all(len(finding.way_out.split()) > 1 for finding in told)
    mended = found_by(case, tmp_path / "mended", False, monkeypatch)
    assert [f for f in mended if f.ok is False or (not f.ok and f.name == case.name)] == []


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, ["doctor", *words])
    return done.exit_code, done.stdout


def test_the_command_line(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    code, told = run(str(model))
    assert code == 0 and told.startswith("ok  weights ") and "NO" not in told
    (model / "chat_template.jinja").unlink()
    code, told = run(str(model), "--json")
    (mistake,) = [finding for finding in json.loads(told) if finding["ok"] is False]
    assert code == 1 and mistake["name"] == "chat template"
    code, told = run("nobody/nothing")
    assert code == 0 and told.startswith("??  model ") and len(told.splitlines()) == 1


def test_a_recipe_with_mistakes_is_told_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("stages: {collect: {nun: 3}, sampel: {}}")
    found = doctor.examine(str(tmp_path / "r.yaml"))
    assert len(found) >= 3 and {(f.name, f.ok) for f in found} == {("recipe", False)}


def test_a_base_without_a_template_may_be_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_model(tmp_path / "base", make_tokenizer(None))
    monkeypatch.setattr("limbeck.doctor.setup.cached", lambda _: base)
    adopted = {"stage": "adopt", "model": "somebody/base", "template": "plain"}
    examined = examining("./adopted/model", "./collect/heldout")
    found = doctor.examine(
        str(recipe(tmp_path, collect=QUESTIONS, adopted=adopted, examined=examined)),
        run=tmp_path / "run",
    )
    assert [finding for finding in found if not finding.ok] == []


def test_a_temperature_that_nobody_scored(tmp_path: Path) -> None:
    """By default a teacher is scored at 1, and a student learns at 2."""
    model = str(make_model(tmp_path / "model"))
    score = {"data": "./curate/dataset", "teacher": model, "num_top": 8}
    student = learning(model, stage="distill", distributions="./score/distributions")

    def found(**more: object) -> list[Finding]:
        stages = {**lessons(), "score": {**score, **more}, "student": student}
        asked = doctor.examine(str(recipe(tmp_path, **stages)), run=tmp_path / "run")
        return [finding for finding in asked if finding.name == "scored temperatures"]

    (finding,) = found()
    assert finding.ok is False
    assert finding.told == "student learns at 2, but score keeps 1"
    assert finding.way_out == "set score.temperatures: [2], or student.temperature: 1"
    assert [each.ok for each in found(temperatures=[1.0, 2.0])] == [True]


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (finding,) = doctor.examine(str(tmp_path))
    assert (finding.name, finding.ok) == ("model", False)
    make_model(tmp_path / "model")
    assert all(finding.ok for finding in doctor.examine(str(tmp_path))), "a stage of a run"


@pytest.mark.parametrize(
    "subject", ["/no/such/folder", "./none", "../none", "runs/none/sft", "recipes/none.yaml"]
)
def test_a_path_where_nothing_is(subject: str) -> None:
    with pytest.raises(UserError, match="there is no such file or folder"):
        doctor.examine(subject)


def test_what_is_well_with_own_models_is_one_line(tmp_path: Path) -> None:
    for name in ("one", "other"):
        make_model(tmp_path / "run" / name / "model")
    setup = Setup(recipes.load({"stages": {"collect": QUESTIONS}}), tmp_path / "run")
    setup.models = lambda: ["./one/model", "./other/model"]  # type: ignore[method-assign]
    setup.place = lambda path: tmp_path / "run" / path  # type: ignore[method-assign]
    setup.is_asked = lambda path: True  # type: ignore[method-assign]
    found = [finding for finding in of_recipe._models(setup) if finding.ok]
    assert [finding.name for finding in found] == ["models"]
    assert found[0].told.endswith("as they should be: ./one/model, ./other/model")


def test_a_stage_of_a_run_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.engines import local

    asked: list[str] = []
    monkeypatch.setattr(local, "connect", lambda **knobs: asked.append(knobs["model"]))
    model = make_model(tmp_path / "sft" / "model")
    for place in (tmp_path / "sft", model, tmp_path / "none"):
        done = CliRunner().invoke(cli.app, ["serve", str(place), "--port", "0"])
        assert isinstance(done.exception, UserError)
    assert asked == [str(model), str(model)]
    assert done.exception.what == "there is no such folder"
