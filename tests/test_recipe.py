"""What `limbeck plan` finds in a recipe before anything runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck import recipe as recipes
from limbeck.config import split_fields, written
from limbeck.errors import UserError, UserErrors
from limbeck.types import Sampling

ROOT = Path(__file__).parents[1]
GOOD = """
stages:
  collect:
    num: 8
    source: {name: reasoning_gym, tasks: {chain_sum: {}}}
  sample: {problems: ./collect/problems, engine: worked}
  verify: {problems: ./collect/problems, traces: ./sample/traces}
  curate:
    problems: ./collect/problems
    traces: ./sample/traces
    verdicts: ./verify/verdicts
    keep: [correct, {name: length, max_tokens: 9}]
"""


def load(tmp_path, text, **more):
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return recipes.load(path, **more)


def mistakes(tmp_path, text, **more):
    with pytest.raises((UserError, UserErrors)) as caught:
        load(tmp_path, text, **more)
    return str(caught.value).replace(str(tmp_path) + "/", "").splitlines()


def test_a_good_recipe_is_typed_and_ordered(tmp_path):
    recipe = load(tmp_path, GOOD)
    assert [stage.verb for stage in recipe.stages] == ["collect", "sample", "verify", "curate"]
    keep = recipe.stages[3].config.keep
    assert [plugin.name for plugin in keep] == ["correct", "length"]
    assert keep[1].knobs == {"min_tokens": 1, "max_tokens": 9}


def test_sampling_knobs_are_written_in_yaml_as_in_an_override(tmp_path):
    text = GOOD.replace("engine: worked", 'engine: worked, top_k: 5, min_p: 0.1, stop: ["</a>", b]')
    recipe = load(tmp_path, text)
    assert recipe.stages[1].config.sampling() == Sampling(1.0, 1.0, 1024, 5, 0.1, ("</a>", "b"))
    recipe = load(tmp_path, GOOD, overrides=recipes.parse_overrides(['sample.stop=["x"]']))
    assert recipe.stages[1].config.sampling().stop == ("x",)


def test_every_mistake_at_once_with_file_line_and_key(tmp_path):
    text = GOOD.replace("num: 8", "nun: 8").replace("engine: worked", "engine: wroked")
    text = text.replace("./verify/verdicts", "./verify/verdict").replace("max_tokens: 9", "max: 9")
    lines = mistakes(tmp_path, text)
    assert lines == [
        "r.yaml:3: stages.collect.num: is required; add it",
        "r.yaml:4: stages.collect.nun: unknown key; did you mean 'num'?",
        "r.yaml:6: stages.sample.engine: no engine is called 'wroked'; did you mean 'worked'?",
        "r.yaml:12: stages.curate.keep.1.max: unknown key; there is max_tokens, min_tokens",
    ]


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("./verify/verdicts", "./verify/verdict", "writes no 'verdict'; did you mean 'verdicts'?"),
        ("./sample/traces", "./smaple/traces", "names no stage; did you mean 'sample'?"),
        ("sample: {problems: ./collect/problems", "sample: {problems: ./curate/dataset", "later"),
        ("traces: ./sample/traces}", "traces: ./collect/problems}", "is problems, not traces"),
        ("num: 8", "num: eight", "should be a valid integer, not 'eight'"),
        ("num: 8", "num: 8.5", "integer"),
        ("name: reasoning_gym", "name: resoning_gym", "did you mean 'reasoning_gym'?"),
        ("  verify:", "  verfy:", "no stage is called 'verfy'; did you mean 'verify'?"),
        ("    num: 8", "    num: 8\n    num: 9", "key 'num' stands twice"),
        ("num: 8", "num: !!python/name:os.system 8", "is not valid YAML"),
        ("stages:", "stagse:", "no mapping called 'stages'"),
        ("stages:", "titel: x\nstages:", "unknown key; did you mean 'title'?"),
        ("engine: worked", "engine: {name: local, model: ./no/model}", "names no stage"),
        ("engine: worked", "engine: {name: local, model: no_such_folder}", "does not exist"),
        ("engine: worked", "engine: my_checks:connect", "cannot import engine"),
        ("  sample:", "  sa mple:", "is no stage name"),
    ],
)
def test_mistakes_are_named(tmp_path, old, new, found):
    assert old in GOOD
    lines = mistakes(tmp_path, GOOD.replace(old, new, 1))
    assert any(found in line for line in lines), lines


def test_overrides_and_sizes(tmp_path):
    text = GOOD + "sizes: {ci: {collect.num: 4, curate.keep: [finished]}}\n"
    assert load(tmp_path, text, size="ci").stages[0].config.num == 4
    settings = recipes.parse_overrides(
        ["collect.num=5", "collect.source.seed=3", "sample.top_p=.5"]
    )
    recipe = load(tmp_path, text, size="ci", overrides=settings)
    assert recipe.stages[0].config.num == 5
    assert recipe.stages[0].config.source.knobs["seed"] == 3
    assert recipe.stages[1].config.top_p == 0.5
    assert "has no size 'xl'" in mistakes(tmp_path, text, size="xl")[0]
    assert "no stage 'colect'" in mistakes(tmp_path, text, overrides={"colect.num": 1})[0]
    with pytest.raises(UserError, match="is not KEY=VALUE"):
        recipes.parse_overrides(["collect.num"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2E5", 2e5),
        (".5", 0.5),
        ("no", "no"),
        ("true", True),
        ("7", 7),
        ("1.0", 1.0),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = recipes.read_yaml(f"x: {text}", "here")[0]["x"]
    assert found == value
    assert type(found) is type(value)


def test_only_what_differs_from_its_default_is_told(tmp_path):
    recipe = load(tmp_path, GOOD, overrides={"sample.num_samples": 3, "sample.top_p": 1.0})
    identity, extent = split_fields(recipe.stages[1].config)
    assert identity == {"problems": "./collect/problems", "engine": {"name": "worked"}}
    assert extent == {"num_samples": 3}
    assert written(recipe.stages[3].config)["keep"][1] == {"name": "length", "max_tokens": 9}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_are_sound_and_point_to_the_schema(path, monkeypatch):
    monkeypatch.chdir(ROOT)  # what lies beside a recipe is named from there
    recipe = recipes.load(path)
    assert recipe.stages
    schema = path.read_text().partition("\n")[0].removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / schema).resolve() == ROOT / "recipes" / "schema.json"
    for size in recipes.read_yaml(path.read_text(), str(path))[0].get("sizes", {}):
        recipes.load(path, size=size)


def test_the_schema_beside_the_recipes_is_the_current_one():
    committed = json.loads((ROOT / "recipes" / "schema.json").read_text())
    assert committed == recipes.schema(), "run `make schema`"


def test_a_stage_may_be_of_one_size_only(tmp_path):
    text = GOOD.replace("  sample:", "  early: false\n  sample:")
    extra = "{stage: collect, num: 2, source: {name: squad}}"
    text += f"sizes: {{more: {{early: {extra}}}, less: {{curate: false}}}}\n"
    names = {
        size: [stage.name for stage in load(tmp_path, text, size=size).stages]
        for size in ("", "more", "less")
    }
    assert names[""] == ["collect", "sample", "verify", "curate"]
    assert names["more"] == ["collect", "early", "sample", "verify", "curate"]
    assert names["less"] == ["collect", "sample", "verify"]
    without = recipes.parse_overrides(["verify=false"])
    assert "names no stage" in mistakes(tmp_path, text, overrides=without)[0]


def test_a_python_recipe_is_the_same_thing(tmp_path):
    path = tmp_path / "r.py"
    path.write_text(f"import yaml\nrecipe = yaml.safe_load('''{GOOD}''')\n")
    assert len(recipes.load(path).stages) == 4


def test_a_plugin_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_filters.py").write_text(
        "def short(trace, verdict, *, limit: int = 3):\n    return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = GOOD.replace("keep: [correct,", "keep: [{name: 'my_filters:short', limit: 4},")
    plugin = load(tmp_path, text).stages[3].config.keep[0]
    assert plugin.knobs == {"limit": 4}
    lines = mistakes(tmp_path, text.replace("limit: 4", "limit: four"))
    assert "stages.curate.keep.0.limit" in lines[0]


def test_plan_on_the_command_line_exits_with_2_and_one_line_each(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(GOOD.replace("num: 8", "num: eight"))
    command = [sys.executable, "-m", "limbeck", "plan", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{path}:4: stages.collect.num: " in done.stderr
