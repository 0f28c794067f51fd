"""SQuAD 1.1: the official exact match and F1 of two systems, from their own predictions.

The dev set asks 18 of its 10,570 questions twice, word for word on the same paragraph. The official
figures count them twice; to Limbeck each is one problem, so an evaluation has 10,552.
"""

from __future__ import annotations

import gzip
import json
from statistics import fmean

import pytest

import limbeck
from limbeck import tables
from limbeck.problems import squad as source
from limbeck.types import Trace
from limbeck.verifiers import squad

from . import recorded

pytestmark = recorded.needs("squad")
PATH = recorded.DATA / "squad" / "dev-v1.1.json.gz"
OFFICIAL = {  # as the official script gives them, in percent; the second left out 13 questions
    "bert": (86.2062, 92.1956),
    "logistic_regression_baseline": (40.1419, 50.9815),
}
NUM = 2000


def predictions(name):
    with gzip.open(recorded.DATA / "squad" / f"predictions_{name}.json.gz") as file:
        return json.load(file)


@pytest.fixture(scope="module")
def problems():
    return list(source.read(path=str(PATH)))


def judged(problem, said):
    """(exact match, F1) of the prediction for a problem; none is a wrong one."""
    text = said.get(problem.meta["id"])
    if text is None:
        return 0.0, 0.0
    verdict = squad.verify(problem, Trace("t", problem.id, 0, text, "stop", "system"))
    return float(verdict.correct), verdict.score


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_verdicts_give_the_official_figures(problems, name):
    said = predictions(name)
    exact, f1 = zip(*(judged(problem, said) for problem in problems), strict=True)
    assert len(exact) == 10_570
    assert (round(100 * fmean(exact), 4), round(100 * fmean(f1), 4)) == OFFICIAL[name]
    distinct = {problem.id: judged(problem, said) for problem in problems}
    assert len(distinct) == 10_552
    for column, official in enumerate(OFFICIAL[name]):
        share = fmean(pair[column] for pair in distinct.values())
        assert 100 * share == pytest.approx(official, abs=0.05)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squad")
    stages = {"collect": {"source": {"name": "squad", "path": str(PATH)}, "num": NUM}}
    for name in OFFICIAL:
        said = [{"id": key, "text": text} for key, text in predictions(name).items()]
        stages[name] = {
            "stage": "evaluate",
            "engine": {
                "name": "replay",
                "path": recorded.write(folder / f"{name}.jsonl", said),
                "problem": "id",
                "missing": "fail",
            },
            "problems": {"squad": "./collect/problems"},
            "num_samples": 0,
        }
    return limbeck.run({"stages": stages}, run=folder / "run")


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_evaluation_counts_as_the_verdicts_do(run, name):
    said = predictions(name)
    asked = tables.read_problems(run.path / "collect" / "problems")
    exact, f1 = zip(*(judged(problem, said) for problem in asked), strict=True)
    results = recorded.results(run, name)
    assert results["greedy"]["num_problems"] == NUM
    assert results["greedy"]["value"] == pytest.approx(fmean(exact), abs=1e-12)
    assert results["f1"]["value"] == pytest.approx(fmean(f1), abs=1e-12)
    missing = sum(problem.meta["id"] not in said for problem in asked)
    assert results["greedy"]["failed"] == pytest.approx(missing / NUM)
