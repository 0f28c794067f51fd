"""Recipes on top of others: `base: other.yaml`."""

import pytest

from limbeck import recipe as recipes
from limbeck.errors import UserError, UserErrors

BELOW = """
name: below
machine: {threads: 1}
stages:
  collect:
    num: 8
    source: {name: reasoning_gym, tasks: {chain_sum: {}}}
  sample: {problems: ./collect/problems, engine: worked}
sizes:
  ci: {collect.num: 2, sample.num_samples: 3}
"""
ABOVE = """
base: below.yaml
title: Above
machine: {device_name: H100}
stages:
  verify: {problems: ./collect/problems, traces: ./sample/traces}
sizes:
  ci: {sample.num_samples: 5}
  more: {collect.num: 9}
"""


def load(tmp_path, above=ABOVE, below=BELOW, **more):
    (tmp_path / "below.yaml").write_text(below)
    (tmp_path / "above.yaml").write_text(above)
    return recipes.load(tmp_path / "above.yaml", **more)


def test_stages_machine_and_sizes_are_put_together(tmp_path):
    recipe = load(tmp_path)
    assert [stage.name for stage in recipe.stages] == ["collect", "sample", "verify"]
    assert (recipe.name, recipe.title) == ("below", "Above")
    assert (recipe.machine.threads, recipe.machine.device_name) == (1, "H100")
    collect, sample, _ = load(tmp_path, size="ci").stages
    assert (collect.config.num, sample.config.num_samples) == (2, 5)
    assert load(tmp_path, size="more").stages[0].config.num == 9


def test_a_stage_of_the_same_name_takes_the_place_of_the_bases(tmp_path):
    own = "  sample: {problems: ./collect/problems, engine: worked, top_p: 0.5}\nsizes:"
    stages = load(tmp_path, ABOVE.replace("sizes:", own)).stages
    assert [stage.name for stage in stages] == ["collect", "sample", "verify"]
    assert stages[1].config.top_p == 0.5
    left_out = ABOVE.replace("stages:", "stages:\n  sample: false").replace("verify:", "v: false #")
    assert [stage.name for stage in load(tmp_path, left_out).stages] == ["collect"]


def test_mistakes_are_told_where_they_stand(tmp_path):
    with pytest.raises(UserErrors) as caught:
        load(tmp_path, ABOVE.replace("./sample", "./smaple"), BELOW.replace("num: 8", "nun: 8"))
    lines = str(caught.value).replace(f"{tmp_path}/", "").splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "below.yaml:5", "below.yaml:6", "above.yaml:6"
    ]  # fmt: skip
    own = "  sample: {engine: worked}\nsizes:"
    with pytest.raises(UserErrors, match=r"above.yaml:\d+: stages.sample.problems: is required"):
        load(tmp_path, ABOVE.replace("sizes:", own))


@pytest.mark.parametrize(
    ("above", "below", "told"),
    [
        ("base: none.yaml", BELOW, "there is no"),
        ("base: 3", BELOW, "is no file's name"),
        (f"base: {'a' * 300}.yaml", BELOW, "there is no"),
        ("base: below.yaml", "- a\n- b", "below.yaml: has no mapping called 'stages'"),
        ("base: above.yaml", BELOW, "builds on this recipe itself"),
        (ABOVE, "base: above.yaml", "builds on this recipe itself"),
        ("base: below.yaml", "just words", "has no mapping called 'stages'"),
        (ABOVE, "stages: 5", "stages"),
    ],
)
def test_a_base_that_cannot_be_one_is_refused(tmp_path, above, below, told):
    with pytest.raises((UserError, UserErrors), match=told):
        load(tmp_path, above, below)


def test_a_base_lies_beside_its_recipe(tmp_path, monkeypatch):
    load(tmp_path)
    monkeypatch.chdir("/")
    assert recipes.load(tmp_path / "above.yaml").stages
