"""Model cards: what the hub reads of them, what they know, and what they say is unknown."""

import ast

import pytest
import yaml

from limbeck import store
from limbeck.export import card, lineage, running

PROOF = {
    "model": {
        "kl_mean": 1.5e-6,
        "kl_bound": 0.01,
        "greedy_equal": 198,
        "positions": 200,
        "greedy_margin": 0.123,
        "greedy_margin_bound": 1.0,
    },
}
ROW = {"split": "heldout", "metric": "pass_at_1", "value": 0.5, "low": 0.4, "high": 0.6,
       "num_problems": 10, "tokens_per_answer": 7.0}  # fmt: skip


def stage(run, name, verb, config, finished, **summary):
    """A finished stage as its folder tells of it."""
    folder = run / name
    folder.mkdir(parents=True)
    told = {"stage": name, "verb": verb, "config": config, "summary": summary}
    row = {
        "work": verb,
        "wall_seconds": 3.0,
        "cpu_seconds": 3600.0,
        "tokens_in": 5,
        "tokens_out": 7,
    }
    store.append_json(folder / "ledger.jsonl", {**row, "flops": 1e9, "money": None})
    store.write_sealed(folder / "stage.json", {**told, "finished": finished, "files": {}})
    return folder


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "demo"
    teacher = {"name": "openai", "model": "deepseek/r1", "base_url": "http://x"}
    stage(run, "collect", "collect", {"source": "gsm8k"}, "2026-01-01", num_problems=3)
    asked = {"problems": "./collect/problems"}
    stage(run, "sample", "sample", {**asked, "engine": teacher}, "2026-01-02")
    stage(run, "solved", "sample", {**asked, "engine": "worked"}, "2026-01-02")
    traces = {"traces": "./sample/traces", "more": ["./solved/traces"]}
    stage(run, "curate", "curate", traces, "2026-01-03", num_kept=2)
    learned = {"model": "Qwen/Qwen2.5-0.5B", "data": "./curate/dataset"}
    stage(run, "sft", "sft", learned, "2026-01-04", num_steps=9)
    stage(run, "other", "sft", learned, "2026-01-05")
    (run / "sft" / "model").mkdir()
    return run


def about(run, **more):
    made = lineage.past(run / "sft" / "model")
    told = {
        "name": "demo-sft",
        "kind": "qwen2",
        "num_parameters": 1000,
        "context": 256,
        "made": made,
        "sources": [card.Source("openai/gsm8k", 2, "mit"), card.Source("web", 1, None)],
        "teachers": lineage.strangers(made, lineage.TEACHES),
    }
    return card.About(**{**told, **more})


def test_the_past_is_followed_to_its_start_and_nowhere_else(run):
    made = lineage.past(run / "sft" / "model")
    assert [stage.name for stage in made] == ["collect", "sample", "solved", "curate", "sft"]
    assert lineage.strangers(made, lineage.BEGINS) == ["Qwen/Qwen2.5-0.5B"]
    assert lineage.strangers(made, lineage.TEACHES) == ["deepseek/r1"]
    assert {"worked", "sft/model"} <= lineage.natives(made)
    assert lineage.past(run.parent) == []


def test_a_model_of_another_run_brings_its_past(run, tmp_path):
    later = tmp_path / "later"
    stage(later, "prune", "prune", {"model": str(run / "sft" / "model")}, "2026-02-01")
    names = [made.name for made in lineage.past(later / "prune" / "model")]
    assert names[-2:] == ["sft", "prune"]


def test_the_hub_reads_the_front_matter(run, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    row = {**ROW, "name": "student"}
    text = card.write(tmp_path, about(run, scores=[row])).read_text()
    told = hub.ModelCard(text).data
    assert told.base_model == ["Qwen/Qwen2.5-0.5B"]
    assert told.datasets == ["openai/gsm8k"]
    assert told.license == "other" and told.pipeline_tag == "text-generation"
    (result,) = told.eval_results
    assert result.metric_value == 0.5 and "0.4 to 0.6" in result.metric_name
    assert "0.400 to 0.600" in text


def test_results_of_another_model_are_not_told_as_its_own(run, tmp_path):
    scores = [{**ROW, "name": "before", "value": 0.6}, {**ROW, "name": "small", "value": 0.5}]
    text = card.write(tmp_path, about(run, scores=scores)).read_text()
    told = yaml.safe_load(text.split("---")[1])["model-index"]
    values = {one["name"]: one["results"][0]["metrics"][0]["value"] for one in told}
    assert values == {"before": 0.6, "small": 0.5}


def test_what_is_unknown_is_said(run, tmp_path):
    text = card.write(tmp_path, about(run)).read_text()
    assert "Teacher `deepseek/r1`: its terms of use hold" in text
    assert "Data `web`: licence not stated; look it up." in text
    assert "Base model `Qwen/Qwen2.5-0.5B`: its licence holds" in text
    assert "In money: not stated." in text
    assert "| **all** | 5.000 | 60 | 5.0e+09 |" in text
    for way in ("from transformers import", "vllm serve", "llama.cpp and Ollama"):
        assert way in text


def test_of_gguf_files_it_says_what_was_proved(run, tmp_path):
    scores = [{**ROW, "name": "sft"}]
    told = about(run, proofs={"q8_0": PROOF}, sizes={"q8_0": 12345}, scores=scores)
    text = card.write(tmp_path, told).read_text()
    lines = text.splitlines()
    (row,) = [number for number, line in enumerate(lines) if line.startswith("| `q8_0.gguf`")]
    cells, heads = ([cell.strip() for cell in lines[n].split("|")[1:-1]] for n in (row, row - 2))
    assert dict(zip(heads, cells, strict=True)) == {
        "file": "`q8_0.gguf`",
        "bytes": "12,345",
        "mean KL to the model, nats": "1.5e-06",
        "bound of this mean": "0.01",
        "equal greedy tokens": "198 of 200",
        "widest lead not kept, nats": "0.12",
        "bound of this lead": "1",
    }
    assert "chooses next tokens from these files as the model does" not in text
    assert "Measured were models in folders, and not these files" in text
    assert (
        "ollama create demo-sft -f Modelfile.q8_0" in text and "llama-server -m q8_0.gguf" in text
    )
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "gguf"


def test_of_a_model_from_nowhere_it_says_so(tmp_path):
    told = card.About(name="m", kind="llama", num_parameters=1, context=2, made=[])
    text = card.write(tmp_path, told).read_text()
    assert "Where the model comes from, and under which licence, is not stated." in text


def test_a_model_of_the_hub_that_is_exported_as_it_is_says_whose_it_is(tmp_path):
    told = card.About(
        name="m", kind="llama", num_parameters=1, context=2, made=[], origin="who/what"
    )
    text = card.write(tmp_path, told).read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == ["who/what"] and "Base model `who/what`" in text
    assert front["tags"] == ["limbeck"]  # nobody knows how it learned
    assert "exported with Limbeck" in text and "made with" not in text


def test_names_of_strangers_bring_no_markup(run, tmp_path):
    told = about(run)
    evil = card.Source("<script>x</script>](http://y)", 1, "mit\n\n# <b>Free</b>")
    other = card.Source("a\\|b" + "/c" * 200, 1, None)
    text = card.write(tmp_path, card.About(**{**vars(told), "sources": [evil, other]})).read_text()
    assert "<script>" not in text and "](http" not in text
    assert "<b>" not in text and "\n# &lt;b" not in text
    (row,) = [line for line in text.splitlines() if " | 1 | a" in line]
    assert row.count("|") == 6  # a cell is a cell, whatever is in it


def test_a_long_prompt_with_a_slash_is_no_place(run):
    stage(run, "asked", "collect", {"prompt": "Think well. " * 30 + "Say 1/2."}, "2026-01-06")
    stage(run, "last", "sft", {"data": "./asked/problems"}, "2026-01-07")
    assert [made.name for made in lineage.past(run / "last" / "model")] == ["asked", "last"]


def trial(run, name, finished, model="./sft/model"):
    """A model made smaller and evaluated, as a gate reads them."""
    config = {"model": model, "method": {"name": "width", "heads": False}, "sparsity": 0.25}
    stage(run, name, "prune", config, finished, num_parameters=7)
    exam = {"engine": {"name": "local", "model": f"./{name}/model"}}
    stage(run, f"eval_{name}", "evaluate", exam, finished)
    return {"model": f"./{name}/model", "scores": f"./eval_{name}/scores"}


@pytest.fixture
def judged(run):
    """A gate that took the second of two, and a choice that took what the gate did."""
    trials = {name: trial(run, name, "2026-01-06") for name in ("half", "most")}
    stage(run, "before", "evaluate", {"engine": {"model": "./sft/model"}}, "2026-01-06")
    gate = {"model": "./sft/model", "before": "./before/scores", "trials": trials}
    stage(run, "gate", "gate", gate, "2026-01-07", chosen="most")
    slow = trial(run, "slow", "2026-01-08", "./gate/model")
    choice = {"slow": slow, "gate": {"model": "./gate/model", "scores": "./gate/scores"}}
    stage(run, "deployed", "choose", {"trials": choice}, "2026-01-09", chosen="gate")
    return run


def test_of_what_was_tried_only_what_was_taken_is_told_as_its_past(judged, tmp_path):
    model = judged / "deployed" / "model"
    made, tried = lineage.past(model), lineage.tried(model)
    assert [one.name for one in made][-4:] == ["sft", "most", "gate", "deployed"]
    assert sorted(tried.models) == ["half", "slow"]
    others = ["before", "eval_half", "eval_most", "half", "eval_slow", "slow"]
    assert sorted(one.name for one in tried.stages) == sorted(others)
    text = card.write(tmp_path, about(judged, made=made, tried=tried)).read_text()
    assert "**half**" not in text and "| half |" not in text
    assert "| **all** | 8.000 | 96 |" in text
    assert "Tried and not taken: 2 models (half, slow)." in text
    assert "took 6.000 CPU hours, 72 tokens, 6.0e+09 FLOPs besides." in text
    assert "- **gate**, from ./most/model: took most of 2 trials\n" in text


def test_a_gate_that_took_none_has_kept_the_model_before(run, tmp_path):
    trials = {name: trial(run, name, "2026-01-06") for name in ("half", "most")}
    gate = {"model": "./sft/model", "before": "./before/scores", "trials": trials}
    stage(run, "gate", "gate", gate, "2026-01-07", chosen=None)
    made = lineage.past(run / "gate" / "model")
    assert [one.name for one in made][-2:] == ["sft", "gate"]
    assert sorted(lineage.tried(run / "gate" / "model").models) == ["half", "most"]
    text = card.write(tmp_path, about(run, made=made)).read_text()
    assert "from ./sft/model: took none, but what they were made from, of 2 trials" in text


def test_nothing_was_tried_where_nobody_chose(run, tmp_path):
    tried = lineage.tried(run / "sft" / "model")
    assert tried == lineage.Tried([], [])
    assert "Tried" not in card.write(tmp_path, about(run, tried=tried)).read_text()


def test_a_step_that_makes_smaller_says_how(run, tmp_path):
    from_sft = {"model": "./sft/model", "method": {"name": "width", "heads": False}}
    stage(run, "narrow", "prune", {**from_sft, "sparsity": 0.25}, "2026-01-06")
    sparse = {"model": "./narrow/model", "method": {"name": "wanda"}, "pattern": "2:4"}
    stage(run, "sparse", "prune", sparse, "2026-01-07")
    bits = {"model": "./sparse/model", "method": "gptq", "weights": "int4", "group_size": 32}
    stage(run, "bits", "quantize", {**bits, "activations": "int8"}, "2026-01-08", num_bytes=9)
    made = lineage.past(run / "bits" / "model")
    lines = card.write(tmp_path, about(run, made=made)).read_text().splitlines()
    told = [line.partition(": ")[2] for line in lines if line.startswith("- **")]
    assert told[-3:] == [
        "width with heads false, sparsity 0.25",
        "wanda, pattern 2:4",
        "gptq, int4 weights, groups of 32, int8 activations, 9 bytes",
    ]


def test_each_data_set_is_told_with_its_readers_and_each_source_once(run, tmp_path):
    sources = [
        card.Source("a/b", 30000, "mit", "course", ["newborn", "teacher"]),
        card.Source("a/b", 7000, "mit", "curate", ["sft"]),
    ]
    text = card.write(tmp_path, about(run, sources=sources)).read_text()
    assert "| course | 30,000 | a/b | mit | newborn, teacher |" in text
    assert "| curate | 7,000 | a/b | mit | sft |" in text and "37,000" not in text
    assert yaml.safe_load(text.split("---")[1])["datasets"] == ["a/b"]
    assert text.count("Data `a/b`") == 1


def test_it_says_what_its_numbers_are_kept_in(run, tmp_path):
    scores = [{**ROW, "name": "sft"}]
    cast = about(run, dtype="bfloat16", dtype_before="float32", scores=scores)
    text = card.write(tmp_path, cast).read_text()
    assert "1,000 parameters in bfloat16 with room for 256 tokens" in text
    assert "Measured before its numbers were cast to bfloat16." in text
    same = about(run, dtype="float32", dtype_before="float32", scores=scores)
    assert "Measured" not in card.write(tmp_path, same).read_text()


def talk(content):
    return [{"role": "system", "content": "x"}, {"role": "user", "content": content}]


def test_a_question_is_one_short_line_that_can_be_printed():
    unfit = ["", " ", "a\nb", "a\u2028b", "\u202eb", "x" * 201, "\ud800"]
    assert running.first_question(talk(text) for text in unfit) == ""
    assert running.first_question(talk(text) for text in [*unfit, "What is 2 + 2?", "No"]) == (
        "What is 2 + 2?"
    )
    assert running.first_question([[{"role": "assistant", "content": "Yes"}]]) == ""


@pytest.mark.parametrize("question", ['"""); import os # \\', "a ``` b", "Zähle: 𝟙 + ½?", "{1}"])
def test_its_question_is_a_literal_of_its_program(question, run, tmp_path):
    text = card.write(tmp_path, about(run, question=question)).read_text()
    program = text.split("```python\n")[1].split("```")[0]
    constants = [
        node.value for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Constant)
    ]
    assert question in constants and 128 in constants


@pytest.mark.parametrize(("context", "tokens"), [(1, 1), (9, 4), (100_000, 256), (None, 256)])
def test_an_answer_takes_half_of_the_context_at_most(context, tokens, run, tmp_path):
    text = card.write(tmp_path, about(run, context=context)).read_text()
    assert f"max_new_tokens={tokens})" in text and '"What is 12 + 5?"' in text
