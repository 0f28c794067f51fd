"""Setups that are known to be broken, each with a twin that is mended in that one thing.

`@case(name, thread)` says what the doctor has to find, and whose pain it was. A case builds in an
empty folder, broken or not, and gives what `limbeck doctor` is asked: a model or a recipe.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from limbeck import models, newborn, store, tables
from limbeck.newborn import CHAT_TEMPLATE
from limbeck.types import Trace

Build = Callable[[Path, bool, pytest.MonkeyPatch], Path]
VOCABULARY = 330


@dataclass(frozen=True)
class Case:
    """`name` of the finding; `is_worth_knowing` where it is told, but no mistake by itself."""

    name: str
    thread: str
    build: Build
    is_worth_knowing: bool


CASES: list[Case] = []


def case(name: str, thread: str, *, is_worth_knowing: bool = False) -> Callable[[Build], Build]:
    def add(build: Build) -> Build:
        CASES.append(Case(name, thread, build, is_worth_knowing))
        return build

    return add


# -- models -------------------------------------------------------------------------------------


@cache
def trained() -> str:
    texts = (f"What is {a} + {b}? Let me check: {a + b}" for a in range(30) for b in range(30))
    return str(newborn.train_tokenizer(texts, VOCABULARY).backend_tokenizer.to_str())


def make_tokenizer(template: str | None = CHAT_TEMPLATE, **special: str) -> PreTrainedTokenizerFast:
    """Ours, with a template or special tokens of others."""
    from tokenizers import Tokenizer

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained()),
        chat_template=template,
        **{"eos_token": "<|end|>", "pad_token": "<|pad|>", **special},
    )


def make_model(
    place: Path,
    tokenizer: PreTrainedTokenizerFast | None = None,
    architecture: str = "llama",
    **sizes: Any,
) -> Path:
    """A small one in `place`, with one row for each token unless `rows` says otherwise."""
    tokenizer = tokenizer or make_tokenizer()
    rows = sizes.pop("rows", len(tokenizer))
    small = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    sizes = {**small, **sizes}
    model = newborn.create_model(architecture, rows, 0, eos_token_id=3, pad_token_id=0, **sizes)
    models.save_model(model, tokenizer, place)
    return place


def amend(path: Path, **fields: Any) -> None:
    """Sets fields of a JSON file; None takes one out."""
    value = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


@case("chat template", "open-r1#235: a base model that nobody can ask anything")
def no_template(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    return make_model(place / "model", make_tokenizer(None if is_broken else CHAT_TEMPLATE))


@case("chat template", "unsloth#1212: the same files work in one engine and garble in another")
def two_templates(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    folder = make_model(place / "model")
    other = CHAT_TEMPLATE.replace("<|end|>", "<|user|>") if is_broken else CHAT_TEMPLATE
    amend(folder / "tokenizer_config.json", chat_template=other)
    return folder


@case("question", "axolotl PR#3271: a template that reads `value` where there is `content`")
def other_fields(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    template = CHAT_TEMPLATE.replace("message.content", "message.value")
    return make_model(place / "model", make_tokenizer(template if is_broken else CHAT_TEMPLATE))


@case("end of turn", "trl#2059: nothing ends a turn, so nobody learns to stop")
def no_end(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    tokenizer = make_tokenizer(CHAT_TEMPLATE.replace("{{ '<|end|>' }}", ""))
    if is_broken:
        tokenizer.eos_token = None
    return make_model(place / "model", tokenizer)


CHATML = """\
{% for m in messages %}
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def chatml_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer(CHATML)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


@case("stopping", "open-r1#603, PR#604: the template ends turns by another token than the engine")
def base_that_never_stops(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    tokenizer = chatml_tokenizer()
    folder = make_model(place / "model", tokenizer)
    ends = [3] if is_broken else [tokenizer.convert_tokens_to_ids("<|im_end|>"), 3]
    amend(folder / "generation_config.json", eos_token_id=ends)
    return folder


@case("stopping", "unsloth#416: eos of another tokenizer in generation_config.json")
def wrong_end(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    folder = make_model(place / "model")
    amend(folder / "generation_config.json", eos_token_id=0 if is_broken else 3)
    return folder


@case("control tokens", "open-r1 PR#494: ChatML for a vocabulary that lacks its tokens")
def foreign_template(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    if is_broken:
        return make_model(place / "model", make_tokenizer(CHATML))
    tokenizer = chatml_tokenizer()
    folder = make_model(place / "model", tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    amend(folder / "generation_config.json", eos_token_id=end)
    return folder


@case("generation prompt", "ms-swift#3113: the model goes on with the user's turn")
def no_header(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    template = CHAT_TEMPLATE.replace(
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}", "{%if 0%}"
    )
    return make_model(place / "model", make_tokenizer(template if is_broken else CHAT_TEMPLATE))


@case("beginning", "unsloth#1823: the first token of a text stands there twice")
def doubled_beginning(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    begin = "{{ bos_token }}" * (2 if is_broken else 1)
    tokenizer = make_tokenizer(begin + CHAT_TEMPLATE, bos_token="<|begin|>")
    return make_model(place / "model", tokenizer)


@case("beginning", "unsloth#798: the template forgets the first token", is_worth_knowing=True)
def no_beginning(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    begin = "" if is_broken else "{{ bos_token }}"
    tokenizer = make_tokenizer(begin + CHAT_TEMPLATE, bos_token="<|begin|>")
    number = tokenizer.convert_tokens_to_ids("<|begin|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", number)]
    )
    return make_model(place / "model", tokenizer)


@case("thinking prefill", "vllm#12999: no reasoning is found", is_worth_knowing=True)
def closed_thinking(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    prefill = "<think>\\n\\n</think>\\n\\n" if is_broken else "<think>\\n"
    template = CHAT_TEMPLATE.replace("'<|assistant|>' }}", f"'<|assistant|>{prefill}' }}}}")
    return make_model(place / "model", make_tokenizer(template))


@case("kept reasoning", "LlamaFactory#6987: the model opens oddly", is_worth_knowing=True)
def dropped_reasoning(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    dropping = CHAT_TEMPLATE.replace(
        "{{ message.content }}", "{{ message.content.split('</think>')[-1] }}"
    )
    return make_model(place / "model", make_tokenizer(dropping if is_broken else CHAT_TEMPLATE))


@case("dated prompt", "DeepSeek-R1#678: numbers of tomorrow are others", is_worth_knowing=True)
def todays_date(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    date = "{{ strftime_now('%d %b %Y') }}" if is_broken else "26 Jul 2024"
    return make_model(place / "model", make_tokenizer(date + CHAT_TEMPLATE))


@case("padding", "smol-course#159: what is masked as padding is never learned")
def padding_is_content(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    pad = "</think>" if is_broken else "<|pad|>"
    return make_model(place / "model", make_tokenizer(pad_token=pad))


@case("padding", "trl#2059, ms-swift#3113: eos is masked, as pad = eos", is_worth_knowing=True)
def padding_is_end(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    pad = "<|end|>" if is_broken else "<|pad|>"
    return make_model(place / "model", make_tokenizer(pad_token=pad))


@case("embedding rows", "trl#2215: tokens that were added have no row")
def too_few_rows(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    tokenizer = make_tokenizer()
    rows = len(tokenizer)
    tokenizer.add_tokens(["<answer>", "</answer>"])
    return make_model(place / "model", tokenizer, rows=rows if is_broken else rows + 64)


@case("text comes back", "unsloth#3899: letters are lost on the way")
def lossy_tokenizer(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    tokenizer = make_tokenizer()
    if is_broken:
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return make_model(place / "model", tokenizer)


@case("read elsewhere", "unsloth#449: the same text has other tokens in another engine")
def rebuilt_tokenizer(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    return make_model(place / "model", architecture="qwen2" if is_broken else "qwen3")


@case("output head", "verl#298: a saved model whose head is drawn anew when it is loaded")
def lost_head(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    folder = make_model(place / "model")
    amend(folder / "config.json", tie_word_embeddings=not is_broken)
    return folder


@case("output head", "verl#1438: a head that config.json says is not there")
def ignored_head(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    folder = make_model(place / "model", tie_word_embeddings=False)
    amend(folder / "config.json", tie_word_embeddings=is_broken)
    return folder


@case("generation settings", "open-r1#622: a greedy sampler; transformers will not save it again")
def greedy_sampler(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    folder = make_model(place / "model")
    temperature = 0.0 if is_broken else 0.6
    amend(folder / "generation_config.json", do_sample=True, temperature=temperature)
    return folder


@case("weights", "verl#533: config and weights of different models")
def other_weights(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    folder = make_model(place / "model")
    amend(folder / "config.json", num_hidden_layers=2 if is_broken else 1)
    return folder


@case("weights", "verl#1438: weights that only pickles hold")
def pickled(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    folder = make_model(place / "model")
    if is_broken:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return folder


@case(
    "number format", "llm-compressor#1123: results fall after a conversion", is_worth_knowing=True
)
def other_format(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    folder = make_model(place / "model")
    weights = load_file(folder / "model.safetensors")
    half = {name: tensor.half() if is_broken else tensor for name, tensor in weights.items()}
    save_file(half, folder / "model.safetensors", {"format": "pt"})
    return folder


@case("model length", "open-r1#310: the context is cut to nothing", is_worth_knowing=True)
def short_model_length(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    folder = make_model(place / "model")
    amend(folder / "tokenizer_config.json", model_max_length=64 if is_broken else 512)
    return folder


# -- recipes ------------------------------------------------------------------------------------

SUMS = {"name": "reasoning_gym", "seed": 1, "tasks": {"chain_sum": {"min_terms": 3}}}
QUESTIONS = {"stage": "collect", "source": SUMS, "num": 50, "num_heldout": 20, "heldout_share": 0.3}


def recipe(place: Path, **stages: Any) -> Path:
    """A recipe file of these stages; JSON is YAML."""
    path = place / "recipe.yaml"
    path.write_text(json.dumps({"name": "broken", "stages": stages}))
    return path


def learning(model: str | Path, data: str = "./curate/dataset", **settings: Any) -> dict[str, Any]:
    return {"stage": "sft", "model": str(model), "data": data, "num_epochs": 1.0, **settings}


def lessons(engine: Any = "worked", **sample: Any) -> dict[str, Any]:
    """Problems, what an engine writes to them, and what is kept of it."""
    told = {"problems": "./collect/problems", "traces": "./sample/traces"}
    return {
        "collect": QUESTIONS,
        "sample": {"problems": "./collect/problems", "engine": engine, **sample},
        "verify": told,
        "curate": {**told, "verdicts": "./verify/verdicts", "keep": ["correct"]},
    }


def examining(
    model: str | Path, problems: str = "./collect/heldout", **more: Any
) -> dict[str, Any]:
    engine = {"name": "local", "model": str(model)}
    settings = {"num_samples": 2, "max_tokens": 96, **more}
    return {"stage": "evaluate", "engine": engine, "problems": {"heldout": problems}, **settings}


def reinforced(model: str | Path, **more: Any) -> dict[str, Any]:
    settings = {"num_steps": 2, "num_samples": 4, "max_tokens": 96, **more}
    return {"stage": "grpo", "model": str(model), "problems": "./collect/problems", **settings}


FRESH = {"stage": "create", "architecture": "llama", "texts": "./curate/dataset"}


@case("recipe", "OpenRLHF PR#1272, open-r1#239: groups of one have no variance to learn from")
def group_of_one(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    student = make_model(place / "model")
    policy = reinforced(student, num_samples=1 if is_broken else 4)
    return recipe(place, collect=QUESTIONS, policy=policy)


@case("same problems", "NeMo-Skills#235: is the test set in the training set?")
def learned_and_examined(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    asked = "./collect/problems" if is_broken else "./collect/heldout"
    stages = {**lessons(), "new": FRESH, "student": learning("./new/model")}
    return recipe(place, **stages, examined=examining("./student/model", asked))


@case("same benchmark", "aimo-progress-prize#22: the benchmark under another owner's name")
def benchmark_learned(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    learned = "someone/math_500" if is_broken else "someone/math_train"
    source = {"name": "hub", "dataset": learned, "split": "test"}
    exam = {"name": "hub", "dataset": "HuggingFaceH4/MATH-500", "split": "test"}
    return recipe(
        place,
        **{**lessons(), "collect": {"source": source, "num": 50}},
        exam={"stage": "collect", "source": exam, "num": 50},
        new=FRESH,
        student=learning("./new/model"),
        examined=examining("./student/model", "./exam/problems"),
    )


@case("shared questions", "NeMo-Skills#235: both sides drew with the same seed")
def same_seed(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    share = 0.0 if is_broken else 0.3
    exam = {"stage": "collect", "source": SUMS, "heldout_share": 0.3, "num": 0, "num_heldout": 20}
    if is_broken:
        exam = {"stage": "collect", "source": SUMS, "num": 20}
    asked = "./exam/problems" if is_broken else "./exam/heldout"
    return recipe(
        place,
        **{**lessons(), "collect": {"source": SUMS, "num": 50, "heldout_share": share}},
        exam=exam,
        new=FRESH,
        student=learning("./new/model"),
        examined=examining("./student/model", asked),
    )


TALES = (
    "A train leaves Lisbon at noon with 84 passengers and sheds a third of them at each station.",
    "Seven gardeners plant 91 tulips in a ring so that no two of the same colour ever touch.",
    "The harbour master counts every barrel twice because the night watch is known to sleep.",
)


@case("shared questions", "NeMo-Skills#235: an exam's question with a few words around it")
def retold_question(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    known = [f"Think hard. {TALES[0]} How many are left?"] if is_broken else []
    for name, questions in {"lessons": [*known, TALES[1]], "exam": [TALES[0], TALES[2]]}.items():
        rows = [json.dumps({"question": question, "answer": "5"}) for question in questions]
        (place / f"{name}.jsonl").write_text("\n".join(rows))
    lesson, exam = (
        {"name": "file", "path": str(place / f"{n}.jsonl")} for n in ("lessons", "exam")
    )
    return recipe(
        place,
        **{**lessons(), "collect": {"source": lesson, "num": 9}},
        exam={"stage": "collect", "source": exam, "num": 9},
        new=FRESH,
        student=learning("./new/model"),
        examined=examining("./student/model", "./exam/problems"),
    )


@case("shared questions", "aimo-progress-prize#22: a data set of somebody's holds the exam")
def exam_in_a_data_set(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    talks = [
        [{"role": "user", "content": tale}, {"role": "assistant", "content": "<think>So</think>5"}]
        for tale in TALES[0 if is_broken else 1 :]
    ]
    rows = [json.dumps({"messages": talk}) for talk in talks]
    (place / "rows.jsonl").write_text("\n".join(rows))
    (place / "exam.jsonl").write_text(json.dumps({"question": TALES[0], "answer": "56"}))
    exam = {
        "stage": "collect",
        "source": {"name": "file", "path": str(place / "exam.jsonl")},
        "num": 1,
    }
    student = learning(make_model(place / "student"), str(place / "rows.jsonl"))
    asked = examining("./student/model", "./exam/problems")
    return recipe(place, exam=exam, student=student, examined=asked)


@case("teachers tokens", "trl#4562, DistillKit#29: kept log-probs of tokens with other ids")
def shifted_ids(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    tokenizer = make_tokenizer()
    if is_broken:
        tokenizer.add_tokens(["<answer>"])
    # The twin's teacher is padded, as Qwen2.5's large ones are (152,064 rows): trl PR#6252 refuses.
    teacher = make_model(place / "teacher", tokenizer, rows=384)
    student = make_model(place / "student")
    return recipe(
        place,
        **lessons(),
        score={"data": "./curate/dataset", "teacher": str(teacher)},
        student={
            "stage": "distill",
            "model": str(student),
            "data": "./curate/dataset",
            "distributions": "./score/distributions",
            "temperature": 1.0,
            "num_epochs": 1.0,
        },
    )


@case("teachers tokens", "ms-swift#7950, trl#4562: another tokenizer", is_worth_knowing=True)
def other_tokenizer(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    words = (f"Therefore {a} times {b} is {a * b}" for a in range(20) for b in range(20))
    other = newborn.train_tokenizer(words, VOCABULARY) if is_broken else make_tokenizer()
    teacher, student = make_model(place / "teacher", other), make_model(place / "student")
    distilled = {**learning(student), "stage": "distill", "teacher": str(teacher)}
    return recipe(place, **lessons(), student=distilled)


@case("hidden widths", "torchtune#2119: teacher and student of other shapes")
def other_width(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    teacher = make_model(place / "teacher", hidden_size=32 if is_broken else 16)
    student = {
        "teacher": str(teacher),
        "hidden": {"weight": 1.0},
        **learning(make_model(place / "s")),
    }
    return recipe(place, **lessons(), student={**student, "stage": "distill"})


@case("context", "open-r1#281: more is asked for than the model can write")
def small_context(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    model = make_model(place / "model")
    examined = examining(model, max_tokens=32768 if is_broken else 400)
    return recipe(place, collect=QUESTIONS, examined=examined)


@case("trace lengths", "open-r1#388: 4,096 tokens cannot hold a reasoning trace")
def short_student(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    teacher = make_model(place / "teacher", max_position_embeddings=32768)
    student = make_model(place / "student", max_position_embeddings=4096)
    context = {} if is_broken else {"context": 32768, "rope_theta": 3e5}
    written = lessons({"name": "local", "model": str(teacher)}, max_tokens=32768)
    return recipe(place, **written, student=learning(student, **context))


@case("trace lengths", "open-r1#281: rows that do not fit are left out")
def long_rows(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    steps = "Wait, let me check that once more. " * (60 if is_broken else 2)
    said = {"role": "assistant", "content": f"<think>{steps}</think>7"}
    row = {"messages": [{"role": "user", "content": "What is 3 + 4?"}, said]}
    (place / "rows.jsonl").write_text(json.dumps(row))
    student = learning(make_model(place / "student"), str(place / "rows.jsonl"))
    return recipe(place, student=student)


@case("stretched context", "open-r1#281: positions that were learned end where they end")
def learned_positions(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    student = make_model(
        place / "m", architecture="gpt2", intermediate_size=24, max_position_embeddings=512
    )
    stretched = {"context": 4096} if is_broken else {}
    return recipe(place, **lessons(), student=learning(student, **stretched))


@case("truncated", "lm-eval#3382: thinking that is never finished is graded")
def cut_texts(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    teacher = make_model(place / "teacher")
    ends = ["length", "length", "length", "stop"] if is_broken else ["stop"] * 4
    traces = [Trace(str(i), "p", i, "text", end, "teacher") for i, end in enumerate(ends)]
    stage = place / "run" / "sample"
    tables.write_part(stage / "traces", tables.to_table("traces", traces))
    manifest = {"identity": {}, "extent": {}, "inputs": {}, "files": store.hash_tree(stage)}
    store.write_sealed(stage / "stage.json", manifest)
    return recipe(place, **lessons({"name": "local", "model": str(teacher)}, max_tokens=96))


@case("answer room", "open-r1#388: a reasoning teacher with the default of 1,024 tokens")
def cut_teacher(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    engine = {"name": "openai", "model": "deepseek-reasoner", "base_url": "http://localhost:1/v1"}
    return recipe(place, **lessons(engine, max_tokens=1024 if is_broken else 32768))


@case("stop strings", "lm-eval#2682, #3216: a stop string fires inside the thinking")
def stop_inside(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    model = make_model(place / "model")
    examined = examining(model, stop=["\n\n"] if is_broken else [])
    return recipe(place, collect=QUESTIONS, examined=examined)


@case("sampling", "lighteval#771: n equal answers are one answer")
def equal_samples(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    model = make_model(place / "model")
    examined = examining(model, num_samples=8, temperature=0.0 if is_broken else 0.6)
    return recipe(place, collect=QUESTIONS, examined=examined)


@case("sampling", "verl PR#5228: groups whose answers are all the same")
def equal_rollouts(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    policy = reinforced(make_model(place / "model"), temperature=0.0 if is_broken else 1.0)
    return recipe(place, collect=QUESTIONS, policy=policy)


@case("format reward", "open-r1#560, trl#6966: the format's reward stays 0")
def unasked_tags(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    template = {} if is_broken else {"template": "r1_zero"}
    rewards = ["correct", {"name": "format", "answer_tags": True}]
    policy = reinforced(make_model(place / "model"), rewards=rewards, **template)
    return recipe(place, collect=QUESTIONS, policy=policy)


@case("reward lengths", "open-r1#474: a punishment that nothing can reach")
def unreachable_length(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    limit = 16384 if is_broken else 96
    overlong = {"name": "overlong", "max_tokens": limit, "margin_tokens": 16}
    policy = reinforced(make_model(place / "model"), rewards=["correct", overlong])
    return recipe(place, collect=QUESTIONS, policy=policy)


@case("served template", "LlamaFactory#6987: trained by one template, served by another")
def template_after_training(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    plain = {"stage": "adopt", "template": "plain"}
    if is_broken:
        chain = {"student": learning("./new/model"), "last": {**plain, "model": "./student/model"}}
    else:
        chain = {"first": {**plain, "model": "./new/model"}, "last": learning("./first/model")}
    return recipe(place, **lessons(), new=FRESH, **chain, examined=examining("./last/model"))


def pruned(model: str | Path, **more: Any) -> dict[str, Any]:
    told = {"method": "wanda", "sparsity": 0.5, "calibration": "./curate/dataset", **more}
    return {"stage": "prune", "model": str(model), **told}


def quantized(model: str | Path, **more: Any) -> dict[str, Any]:
    told = {"method": "round", "weights": "int8", **more}
    return {"stage": "quantize", "model": str(model), **told}


@case("same problems", "TICO#951: calibrated on answers to the questions of the benchmark")
def calibrated_on_the_exam(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    half = pruned(make_model(place / "model"))
    asked = "./collect/problems" if is_broken else "./collect/heldout"
    return recipe(place, **lessons(), half=half, examined=examining("./half/model", asked))


@case("kept zeros", "sparsegpt#17, wanda#83: a sparsity that fine-tuning undoes")
def zeros_that_grow(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    half = pruned(make_model(place / "model"))
    recovered = learning("./half/model", keep_zeros=not is_broken)
    return recipe(place, **lessons(), half=half, recovered=recovered)


@case("quantized last", "aimet#509: is a model pruned before it is quantized, or after?")
def quantized_too_early(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    student = make_model(place / "model")
    if is_broken:
        chain = {"small": quantized(student), "half": pruned("./small/model")}
    else:
        chain = {"half": pruned(student), "small": quantized("./half/model")}
    return recipe(place, **lessons(), **chain)


@case("group sizes", "llm-compressor PR#2353: told at the end of a long calibration")
def uneven_groups(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    fresh = {**FRESH, "hidden_size": 80 if is_broken else 64, "intermediate_size": 192}
    small = quantized("./new/model", weights="int4", group_size=32)
    return recipe(place, **lessons(), new=fresh, small=small)


def gated(place: Path, num_heldout: int = 400, scores: str = "./eval_small/scores") -> Path:
    student = make_model(place / "model")
    trial = {"model": "./small/model", "scores": scores}
    gate = {"model": str(student), "before": "./eval/scores", "trials": {"int8": trial}}
    return recipe(
        place,
        collect={**QUESTIONS, "num_heldout": num_heldout},
        small=quantized(student),
        eval=examining(student, num_samples=4),
        eval_small=examining("./small/model", num_samples=4),
        gate=gate,
    )


@case("own scores", "AutoGPTQ#2: a badly quantized model is taken, and nobody knows")
def scores_of_another(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    return gated(place, scores="./eval/scores" if is_broken else "./eval_small/scores")


@case("enough problems", "mlx-lm#255: ten questions, and a quantized model that beats the whole")
def too_few_problems(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    return gated(place, num_heldout=20 if is_broken else 400)


@case("enough problems", "mlx-lm#255: so few that luck decides", is_worth_knowing=True)
def rather_few_problems(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    return gated(place, num_heldout=100 if is_broken else 400)


@case("readable by llama", "llama.cpp#8649: a splitting of texts that it does not know by name")
def split_otherwise(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    tokenizer = make_tokenizer()
    if is_broken:
        split = pre_tokenizers.Split(Regex("[aeiou]"), "isolated")
        rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, rest])
    exported = {"stage": "export", "model": str(make_model(place / "model", tokenizer))}
    return recipe(place, out={**exported, "to": "gguf"})


@case("free disk", "distilabel#52: a job that fails half-way loses what it gathered")
def small_disk(place: Path, is_broken: bool, monkeypatch: pytest.MonkeyPatch) -> Path:
    from limbeck.doctor import disk

    monkeypatch.setattr(disk, "_free", lambda _: 1 << 20 if is_broken else 1 << 40)
    return recipe(place, **lessons(), new=FRESH, student=learning("./new/model"))


@case("packages", "lighteval#595: one works only if another is downgraded")
def old_package(place: Path, is_broken: bool, monkeypatch: pytest.MonkeyPatch) -> Path:
    from limbeck.doctor import versions

    real = versions.version_of
    old = {"transformers": "4.51.3"} if is_broken else {}
    monkeypatch.setattr(versions, "version_of", lambda name: old.get(name) or real(name))
    return recipe(place, **lessons(), new=FRESH)


@case("packages", "open-r1#122: what a recipe needs is not installed")
def missing_package(place: Path, is_broken: bool, monkeypatch: pytest.MonkeyPatch) -> Path:
    from limbeck.doctor import versions

    real = versions.version_of
    gone = {"reasoning-gym"} if is_broken else set()
    monkeypatch.setattr(versions, "version_of", lambda n: None if n in gone else real(n))
    return recipe(place, **lessons())


@case("vllm server", "open-r1#602, trl#3304: which vLLM version?")
def old_vllm(place: Path, is_broken: bool, _: pytest.MonkeyPatch) -> Path:
    program = place / "vllm" / "bin" / "vllm"
    version = "0.8.3" if is_broken else "0.32.1"
    (place / "vllm/lib/python3.12/site-packages" / f"vllm-{version}.dist-info").mkdir(parents=True)
    program.parent.mkdir()
    program.touch(0o755)
    model = str(make_model(place / "model"))
    engine = {"name": "vllm", "model": model, "start": [str(program), "serve"]}
    return recipe(place, **lessons(engine, max_tokens=96))


@case("known mistakes", "curator PR#342: a key that is missed after the first thousand rows")
def no_key(place: Path, is_broken: bool, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if not is_broken:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-nobody")
    return recipe(place, **lessons({"name": "openai", "model": "gpt-4.1"}))
