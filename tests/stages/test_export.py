"""export: files that are proved, whole or not there, and the command that writes them."""

import errno
import json
import multiprocessing
import os
import re
import signal
import sys

import pytest

from limbeck import cli, exporting, planner, recipe, store, tables
from limbeck.errors import UserError, UserErrors
from limbeck.export import lineage
from limbeck.folder import Machine, StageFolder
from limbeck.stages import export
from limbeck.types import Message, Problem
from tests.export import tiny

pytest.importorskip("torch")
pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from limbeck import models

    folder = tmp_path_factory.mktemp("models") / "student"
    tokenizer = tiny.phrases("Let me check", " ones")
    made = tiny.model("llama", tokenizer, hidden_size=32, num_hidden_layers=1)
    models.save_model(made, tokenizer, folder)
    return folder


def exported(model, folder, **settings):
    folder.mkdir(exist_ok=True)
    out = StageFolder(folder, "export", machine=Machine(device="cpu", threads=1))
    return export.run(export.Config(model=str(model), **settings), out)


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_gguf_files_with_proof_card_and_modelfile(model, tmp_path):
    exported(model, tmp_path, to="gguf", quant=["q8_0"])
    assert names(tmp_path / "gguf") == ["Modelfile.q8_0", "README.md", "proof.json", "q8_0.gguf"]
    found = json.loads((tmp_path / "gguf" / "proof.json").read_text())["q8_0"]
    assert found["sha256"] == store.hash_file(tmp_path / "gguf" / "q8_0.gguf")
    assert found["prompts"] >= 20 and found["templates"] >= 20
    assert "kl_bound is the bound of kl_mean" in found["bounds"]
    assert "`q8_0.gguf`" in (tmp_path / "gguf" / "README.md").read_text()


def test_it_goes_on_with_what_is_missing(model, tmp_path):
    exported(model, tmp_path, to="gguf", quant=["f16"])
    before = (tmp_path / "gguf" / "f16.gguf").stat().st_mtime_ns
    (tmp_path / "gguf" / ".bf16.gguf.writing").write_bytes(b"GGUF")  # which a kill has left
    exported(model, tmp_path, to="gguf", quant=["f16", "q4_0"])
    assert (tmp_path / "gguf" / "f16.gguf").stat().st_mtime_ns == before
    card = (tmp_path / "gguf" / "README.md").read_text()
    assert "`f16.gguf`" in card and "`q4_0.gguf`" in card
    assert not [name for name in names(tmp_path / "gguf") if name.startswith(".")]


def test_a_proof_that_fails_leaves_no_file(model, tmp_path, monkeypatch):
    from limbeck.export import decoders

    monkeypatch.setattr(decoders, "_interleaved", lambda weight, num_heads: weight)
    with pytest.raises(UserError, match="nothing is kept"):
        exported(model, tmp_path, to="gguf", quant=["f32"])
    assert names(tmp_path / "gguf") == []


def killed(model, folder):
    """Dies as by SIGKILL once its file is proved, and has not yet its name."""
    import torch

    torch.set_num_threads(1)  # of the parent's threads a fork has none
    os.environ["LIMBECK_KILL_AT"] = "export.proved"
    exported(model, folder, to="gguf", quant=["f16"])


@pytest.mark.filterwarnings("ignore:This process")  # is multi-threaded
def test_a_kill_behind_the_proof_leaves_no_file_under_its_name(model, tmp_path):
    process = multiprocessing.get_context("fork").Process(target=killed, args=(model, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert names(tmp_path / "gguf") == [".f16.gguf.writing"]
    exported(model, tmp_path, to="gguf", quant=["f16"])
    assert names(tmp_path / "gguf") == ["Modelfile.f16", "README.md", "f16.gguf", "proof.json"]


def test_a_hugging_face_folder_is_the_same_model(model, tmp_path):
    from limbeck import models

    exported(model, tmp_path, to="hf")
    folder = tmp_path / "model"
    assert {"README.md", "chat_template.jinja", "model.safetensors"} <= set(names(folder))
    was, now = (models.load_model(place).state_dict() for place in (model, folder))
    assert all((was[name] == now[name]).all() for name in was)
    assert (folder / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_its_numbers_are_cast_file_by_file(model, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    from limbeck import models

    parted = tmp_path / "parted"
    dense = models.load_model(model)
    dense.save_pretrained(parted, max_shard_size="20KB")
    models.load_tokenizer(model).save_pretrained(parted)
    exported(parted, tmp_path / "out", to="hf", dtype="bfloat16")
    folder = tmp_path / "out" / "model"
    assert len([*folder.glob("*.safetensors")]) > 1
    cast = AutoModelForCausalLM.from_pretrained(folder)
    assert cast.dtype == torch.bfloat16
    was, now = dense.state_dict(), cast.state_dict()
    assert all((was[name].bfloat16() == now[name]).all() for name in was)
    assert "parameters in bfloat16 with room" in (folder / "README.md").read_text()
    index = store.read_json(folder / "model.safetensors.index.json")
    halves = {name: 2 * weight.numel() for name, weight in was.items()}
    assert index["metadata"]["total_size"] == sum(halves[name] for name in index["weight_map"])


def test_what_is_too_large_for_a_type_is_not_written(model, tmp_path):
    import torch

    from limbeck import models

    dense = models.load_model(model)
    with torch.no_grad():
        dense.model.norm.weight[0] = 1e6  # float16 ends at 65,504
    models.save_model(dense, models.load_tokenizer(model), tmp_path / "large")
    with pytest.raises(UserError, match="too large for float16; take bfloat16"):
        exported(tmp_path / "large", tmp_path / "out", to="hf", dtype="float16")
    assert names(tmp_path / "out") == ["ledger.jsonl"]


def test_what_others_have_quantized_is_not_cast(model, tmp_path):
    import shutil

    from limbeck import models
    from limbeck.export import huggingface

    quantized = tmp_path / "fp8"
    shutil.copytree(model, quantized)
    config = store.read_json(quantized / "config.json")
    store.write_json(
        quantized / "config.json", {**config, "quantization_config": {"quant_method": "fp8"}}
    )
    tokenizer = models.load_tokenizer(model)
    with pytest.raises(UserError, match="is quantized; drop dtype"):
        huggingface.write(str(quantized), tokenizer, tmp_path / "out", "bfloat16")
    assert names(tmp_path / "out") == []


def test_a_model_without_an_end_of_positions_has_a_card(model, tmp_path):
    from transformers import BloomConfig, BloomForCausalLM

    from limbeck import models

    tokenizer = models.load_tokenizer(model)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "n_layer": 1, "n_head": 2}
    bloom = BloomForCausalLM(BloomConfig(**sizes, bos_token_id=0, eos_token_id=0, pad_token_id=0))
    models.save_model(bloom, tokenizer, tmp_path / "bloom")
    exported(tmp_path / "bloom", tmp_path / "out", to="hf")
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "parameters in float32, exported with Limbeck" in card
    with pytest.raises(UserError, match="cannot write a bloom model as GGUF"):
        exported(tmp_path / "bloom", tmp_path / "gguf", to="gguf")


def test_a_quantized_folder_says_so_and_is_not_cast(model, tmp_path):
    from limbeck.stages import quantize

    out = StageFolder(tmp_path, "quantize", machine=Machine(device="cpu", threads=1))
    settings = {"model": str(model), "method": "round", "weights": "int4", "group_size": 16}
    quantize.run(quantize.Config(**settings, symmetric=False), out)
    quantized = tmp_path / "model"
    exported(quantized, tmp_path / "out", to="hf")
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "int4 weights in groups of 16 with zero points, and all else as float32," in card
    assert "pip install compressed-tensors" in card
    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    place = str(tmp_path / "out" / "model")
    exec(program.replace("PATH OR NAME OF THIS MODEL", place).replace("128", "2"), {})
    with pytest.raises(UserError, match="is quantized; drop dtype"):
        exported(quantized, tmp_path / "other", to="hf", dtype="bfloat16")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--to", "gguf", "--quant", "q3"], "--quant: knows no 'q3'; take of f32, f16"),
        (["--to", "gguf", "--dtype", "float16"], "--dtype: is of Hugging Face folders"),
        (["--to", "hf", "--quant", "f16"], "--quant: is of GGUF files"),
    ],
)
def test_what_does_not_go_with_a_format_is_refused(asked, said, model, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["limbeck", "export", str(model), *asked])
    assert cli._exit_code(lambda: cli.app(standalone_mode=False)) == 2
    assert said in capsys.readouterr().err


def test_others_stop_where_its_turns_end(model, tmp_path):
    import shutil

    stranger = tmp_path / "stranger"
    shutil.copytree(model, stranger)
    settings = stranger / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token_id": 0}))
    (stranger / "pytorch_model.bin").write_bytes(b"x")
    shutil.copyfile(stranger / "model.safetensors", stranger / "consolidated.safetensors")
    exported(stranger, tmp_path / "out", to="hf")
    told = json.loads((tmp_path / "out" / "model" / "generation_config.json").read_text())
    assert told["eos_token_id"] == [3, 0]
    there = names(tmp_path / "out" / "model")
    assert not {"pytorch_model.bin", "consolidated.safetensors"} & {*there}


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_full_disk_is_one_line_and_nothing_half_written(to, model, tmp_path, monkeypatch, capsys):
    import shutil

    from gguf import GGUFWriter

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(GGUFWriter, "write_tensor_data", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    place = tmp_path / "out"
    monkeypatch.setattr(
        sys, "argv", ["limbeck", "export", str(model), "--to", to, "--out", str(place), "--quiet"]
    )
    assert cli._exit_code(lambda: cli.app(standalone_mode=False)) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "the disk is full" in said[0]
    assert not place.exists()
    assert not [name for name in names(tmp_path) if name.endswith((".gguf", ".safetensors"))]
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["limbeck", "export", str(model), "--to", to, "--out",
                                      str(place), "--quiet"])  # fmt: skip
    assert cli._exit_code(lambda: cli.app(standalone_mode=False)) == 0
    assert (place / ("q8_0.gguf" if to == "gguf" else "model.safetensors")).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_command_puts_it_beside_the_run_and_never_over_another(model, monkeypatch, capsys):
    arguments = ["limbeck", "export", str(model), "--to", "hf", "--quiet"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert cli._exit_code(lambda: cli.app(standalone_mode=False)) == 0
    assert str(model.with_name("student-hf") / "config.json") in capsys.readouterr().out
    assert cli._exit_code(lambda: cli.app(standalone_mode=False)) == 2
    assert "student-hf: is there already" in capsys.readouterr().err


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["limbeck", "export", *map(str, arguments), "--quiet"])
    return cli._exit_code(lambda: cli.app(standalone_mode=False))


def hidden(folder):
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_second_export_to_a_place_leaves_the_first_alone(model, tmp_path, monkeypatch, capsys):
    asked = (model, "--to", "gguf", "--out", tmp_path / "out")
    about = [os.path.realpath(model), "gguf", None]
    aside = tmp_path / f".out.{store.digest(about)[:8]}.export"
    with store.locked(aside):
        assert command(monkeypatch, *asked) == 2
        assert "is in use by" in capsys.readouterr().err
        assert (aside / "lock").exists()
    assert command(monkeypatch, *asked) == 0
    assert not hidden(tmp_path)
    with pytest.raises(UserError, match="is there already"):
        exporting.export({"model": str(model), "to": "hf"}, tmp_path / "out")


def test_a_refusal_keeps_what_is_proved_and_nothing_else(model, tmp_path, monkeypatch, capsys):
    from limbeck.export import proof

    out = tmp_path / "out"
    prove = proof.prove

    def only_f32(path, kind, *about):
        if kind != "f32":
            raise UserError(kind, "is not equal", "take a finer --quant")
        return prove(path, kind, *about)

    monkeypatch.setattr(proof, "prove", only_f32)
    assert command(monkeypatch, model, "--to", "gguf", "--quant", "q4_0", "--out", out) == 2
    assert not hidden(tmp_path)
    assert command(monkeypatch, model, "--to", "gguf", "--quant", "f32,f16", "--out", out) == 2
    assert len(hidden(tmp_path)) == 1 and not out.exists()
    monkeypatch.setattr(proof, "prove", None)  # whoever proves it again fails
    assert command(monkeypatch, model, "--to", "gguf", "--quant", "f32", "--out", out) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_model_that_has_changed_since_a_kill_is_exported_anew(model, tmp_path, monkeypatch):
    import shutil

    from limbeck import models
    from limbeck.export import proof

    changed = tmp_path / "model"
    shutil.copytree(model, changed)
    with monkeypatch.context() as broken:
        broken.setattr(proof, "prove", None)  # as if killed before the proof
        assert command(broken, changed, "--to", "gguf", "--out", tmp_path / "out") == 1
    assert hidden(tmp_path)
    other = models.load_model(changed)
    other.model.norm.weight.data.mul_(2.0)
    models.save_model(other, models.load_tokenizer(changed), changed)
    assert command(monkeypatch, changed, "--to", "gguf", "--out", tmp_path / "out") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_a_place_that_is_a_dangling_link_is_taken(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    assert command(monkeypatch, model, "--to", "hf", "--out", tmp_path / "out") == 2
    assert "is there already" in capsys.readouterr().err


def test_other_stages_name_a_file_of_it(model):
    stages = {
        "export": {"model": str(model), "to": "gguf", "quant": ["q8_0"]},
        "sample": {"problems": "x", "engine": {"name": "llama_cpp", "model": "./export/gguf/q8_0"}},
    }
    with pytest.raises(UserErrors, match=r"did you mean 'gguf/q8_0\.gguf'"):
        recipe.load({"stages": stages})


HARMFUL = (  # only to a conversation of several turns, and without end
    "{% if messages|length > 2 %}{% for i in range(99999999) %}{% for j in range(99999) %}"
    "{% endfor %}{% endfor %}{% endif %}"
)


def test_a_template_that_harms_some_conversations_is_not_given_to_llama_cpp(model, tmp_path):
    import shutil

    harmful = tmp_path / "harmful"
    shutil.copytree(model, harmful)
    template = harmful / "chat_template.jinja"
    template.write_text(HARMFUL + template.read_text())
    with pytest.raises(UserError, match=r"cannot be rendered \(it counts further"):
        exported(harmful, tmp_path / "out", to="gguf", quant=["f32"])


def test_llama_cpp_has_so_much_memory_and_no_more(model, tmp_path, monkeypatch):
    from limbeck.export import llama

    exported(model, tmp_path / "out", to="gguf", quant=["f32"])
    monkeypatch.setattr(llama, "MEMORY", 16 << 20)  # of which Python takes some
    file = tmp_path / "out" / "gguf" / "f32.gguf"
    with pytest.raises(UserError, match=r"llama\.cpp"), llama.loaded(file, "f32", 512, 60.0):
        pass


def test_k_quants_are_refused_with_the_way_to_them(model):
    stages = {"export": {"model": str(model), "to": "gguf", "quant": ["q4_k_m"]}}
    with pytest.raises(UserErrors, match=r"made by llama\.cpp's own tool alone.*llama-quantize"):
        recipe.load({"stages": stages})


def test_a_type_is_written_once_however_it_is_spelled(model):
    config = export.Config(model=str(model), to="gguf", quant=["Q8_0", "q8_0", " F16"])
    assert config.quant == ["q8_0", "f16"]


def test_without_llama_cpp_it_says_what_to_install(model, tmp_path, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else found(name)
    )
    with pytest.raises(UserError, match=r"pip install 'limbeck\[gguf\]'"):
        exported(model, tmp_path, to="gguf")


def finished(folder, verb, config, **told):
    """A finished stage with all that lies in its folder, and what it has read as it is now."""
    folder.mkdir(parents=True, exist_ok=True)
    named = [text for _, text in lineage.named(config) if text.startswith("./")]
    files = {name: store.hash_file(folder / name) for name in names(folder)}
    about = {"stage": folder.name, "verb": verb, "config": config, "summary": told}
    inputs = {name: planner.content(folder.parent, name) for name in named}
    days = len([*folder.parent.glob("*/stage.json")])
    about |= {"inputs": inputs, "finished": f"2026-01-{days:02}", "files": files}
    store.write_sealed(folder / "stage.json", about)
    return folder


def evaluated(run, name, model, num_correct, split="heldout"):
    """An evaluation of four samples for each of ten problems."""
    counts = {"num_samples": 4, "num_correct": num_correct, "completion_tokens": 40}
    none = ("num_failed", "num_truncated", "num_unparsed", "num_timeout", "prompt_tokens")
    row = {"split": split, "metric": "pass_at_1", **counts, **dict.fromkeys(none, 0)}
    row |= {"domain": "sums", "flops": 1.0, "value": num_correct / 4, "weight": 1.0}
    rows = [{**row, "problem_id": str(number)} for number in range(10)]
    tables.write_part(run / name / "scores", tables.to_table("scores", rows))
    return finished(run / name, "evaluate", {"engine": {"name": "local", "model": model}})


def learned(run, name, *contents, source="a/b", **config):
    """A data set of conversations that open with these words."""
    rows = [
        {
            "id": f"{name}{number}",
            "problem_id": str(number),
            "messages": [
                {"role": "user", "content": content},
                {"role": "assistant", "content": "I see."},
            ],
            "domain": "",
            "source": source,
            "teacher": "",
            "weight": 1.0,
        }
        for number, content in enumerate(contents)
    ]
    tables.write_part(run / name / "dataset", tables.to_table("dataset", rows))
    return finished(run / name, "mix" if config else "curate", config)


@pytest.fixture
def run(model, tmp_path):
    """A run with a model that has learned from a data set that was mixed with another."""
    import shutil

    run = tmp_path / "run"
    learned(run, "course", "Teach me.", "And me.")
    shutil.copytree(model, run / "teacher" / "model")
    finished(run / "teacher", "sft", {"data": "./course/dataset"})
    learned(run, "curate", "two\nlines", "What follows one?", source="c/d")
    learned(run, "mixed", "two\nlines", "What follows one?", source="c/d", parts="./curate/dataset")
    shutil.copytree(model, run / "sft" / "model")
    finished(run / "sft", "distill", {"data": "./mixed/dataset", "teacher": "./teacher/model"})
    return run


def test_each_data_set_counts_once_and_parts_of_others_do_not(run):
    sources, _ = export.learned_from(lineage.past(run / "sft" / "model"))
    told = [(source.dataset, source.name, source.rows, source.readers) for source in sources]
    assert told == [("course", "a/b", 2, ["teacher"]), ("mixed", "c/d", 2, ["sft"])]


def card_of(model, tmp_path, monkeypatch, *arguments):
    out = tmp_path / "out"
    assert command(monkeypatch, model, "--to", "hf", "--out", out, *arguments) == 0
    return (out / "README.md").read_text()


def test_the_command_tells_what_its_run_says_of_the_model(run, tmp_path, monkeypatch):
    evaluated(run, "eval_teacher", "./teacher/model", 4)
    evaluated(run, "eval_sft", "./sft/model", 2)
    card = card_of(run / "sft", tmp_path, monkeypatch)
    results = [line for line in card.splitlines() if "pass_at_1 |" in line]
    assert len(results) == 1 and results[0].startswith("| sft | heldout | pass_at_1 | 0.500 |")
    assert "Measured" not in card


def test_several_evaluations_are_told_apart(run, tmp_path):
    evaluated(run, "eval_sft", "./sft/model", 2)
    evaluated(run, "harder", "./sft/model", 1, "hard")
    found = exporting.scores_of(str(run / "sft" / "model"))
    assert {*found} == {"sft (eval_sft)", "sft (harder)"}


def test_what_was_said_of_a_model_before_it_was_made_anew_is_not_told(run):
    evaluated(run, "eval_sft", "./sft/model", 2)
    assert [*exporting.scores_of(str(run / "sft" / "model"))] == ["sft"]
    (run / "sft" / "stage.json").unlink()
    (run / "sft" / "model" / "model.safetensors").write_bytes(b"other")
    finished(run / "sft", "distill", {"data": "./mixed/dataset"})
    assert exporting.scores_of(str(run / "sft" / "model")) == {}
    assert exporting.scores_of("who/what") == {}


def test_a_gates_own_scores_count(run):
    import shutil

    scores = evaluated(run, "eval_sft", "./sft/model", 2) / "scores"
    shutil.copytree(run / "sft" / "model", run / "passed" / "model")
    shutil.copytree(scores, run / "passed" / "scores")
    sft = {"model": "./sft/model", "scores": "./eval_sft/scores"}
    finished(run / "passed", "gate", {"model": "./teacher/model", "trials": {"sft": sft}},
             chosen="sft")  # fmt: skip
    passed = str(run / "passed" / "model")
    assert exporting.scores_of(passed) == {"passed": str(run / "passed" / "scores")}
    evaluated(run, "last", "./passed/model", 1)
    assert {*exporting.scores_of(passed)} == {"passed (last)", "passed (gate)"}


def test_its_program_asks_what_the_model_has_learned(run, model, tmp_path, monkeypatch):
    card = card_of(run / "sft", tmp_path, monkeypatch)
    assert '"content": "What follows one?"' in card
    exported(model, tmp_path / "plain", to="hf")
    assert '"What is 12 + 5?"' in (tmp_path / "plain" / "model" / "README.md").read_text()


def test_its_program_asks_the_first_of_its_prompts_and_nothing_of_an_exam(run, tmp_path):
    turn = Message("user", "What comes first?")
    problem = Problem("a", (turn,), "1", "number")
    exam = Problem("b", (Message("user", "Secret?"),), "1", "number", meta={"sealed": True})
    made = lineage.past(run / "sft" / "model")
    for name, problems in {"open": [exam, problem], "exam": [exam]}.items():
        tables.write_part(tmp_path / name, tables.to_table("problems", problems))
    asked = [
        export.question(export.Config(model="x", to="hf", prompts=str(tmp_path / name)), made)
        for name in ("open", "exam")
    ]
    assert asked == ["What comes first?", "What follows one?"]
