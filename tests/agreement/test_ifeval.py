"""IFEval: the reference checker's verdicts on 541 responses of a small quantized model.

Its labels come with M-IFEval (Dussolle et al. 2025, arXiv:2502.04688).
"""

from __future__ import annotations

import pytest

import limbeck
from limbeck.problems import ifeval as source
from limbeck.verifiers import ifeval

from . import recorded

pytestmark = recorded.needs("ifeval")
ASKED, SAID = "ifeval/input_data.jsonl", "ifeval/responses_qwen2.5_1.5b_gptq_int4.jsonl.gz"
SHARES = {
    "prompt_strict": 0.371534,
    "prompt_loose": 0.421442,
    "instruction_strict": 0.495204,
    "instruction_loose": 0.538369,
}


@pytest.fixture(scope="module", autouse=True)
def _languages():
    pytest.importorskip("langdetect")


@pytest.mark.parametrize("loose", [False, True])
def test_every_verdict_is_the_reference_checkers(loose):
    problems = list(source.read(path=str(recorded.DATA / ASKED)))
    rows = recorded.read(SAID)
    differing = []
    for problem, row in zip(problems, rows, strict=True):
        named = [each["id"] for each in problem.meta["instructions"]]
        assert named == row["instruction_id_list"]
        found = ifeval.followed(problem, row["response"], loose)
        expected = row["loose" if loose else "strict"]
        pairs = zip(named, found, expected, strict=True)
        differing += [(problem.meta["key"], name) for name, ours, theirs in pairs if ours != theirs]
    assert differing == []


def test_an_evaluation_gives_the_four_figures(tmp_path):
    keys = [row["key"] for row in recorded.read(ASKED)]
    said = [
        {"key": key, "response": row["response"]}
        for key, row in zip(keys, recorded.read(SAID), strict=True)
    ]
    stages = {
        "collect": {
            "source": {"name": "ifeval", "path": str(recorded.DATA / ASKED)},
            "num": len(keys),
        },
        "evaluate": {
            "engine": {
                "name": "replay",
                "path": recorded.write(tmp_path / "said.jsonl", said),
                "problem": "key",
                "text": "response",
            },
            "problems": {"ifeval": "./collect/problems"},
            "num_samples": 1,
            "greedy": False,
        },
    }
    results = recorded.results(limbeck.run({"stages": stages}, run=tmp_path / "run"))
    assert {name: round(results[name]["value"], 6) for name in SHARES} == SHARES
    assert round(results["pass_at_1"]["value"], 6) == SHARES["prompt_strict"]
    assert results["pass_at_1"]["num_problems"] == len(keys)
