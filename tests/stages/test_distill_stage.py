"""distill, by a tiny teacher and a tiny student: each way to learn, against plain computations."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from limbeck import processes, store
from limbeck.errors import UserError
from limbeck.folder import Machine, StageFolder
from limbeck.recipe import load
from limbeck.types import Message

torch = pytest.importorskip("torch")
from torch import Tensor  # noqa: E402
from torch.nn.functional import cross_entropy, kl_div, mse_loss  # noqa: E402

from limbeck import chat, models, newborn  # noqa: E402
from limbeck.stages import distill, score, sft  # noqa: E402
from limbeck.train import scales, teaching  # noqa: E402
from limbeck.train.batch import Tokens  # noqa: E402
from limbeck.train.distillation import View  # noqa: E402
from limbeck.train.on_policy import num_written, rewarded  # noqa: E402

MACHINE = Machine(device="cpu", threads=1)
LLAMA: dict[str, Any] = {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
TEXTS = [f"{a} and {b} make {a + b}." for a in range(12) for b in range(12)]
OWN = {"max_tokens": 10, "batch_rows": 8}


def make_model(folder: Path, tokenizer: Any, seed: int, width: int, padding: int = 0) -> None:
    model = newborn.create_model(
        "llama",
        len(tokenizer) + padding,
        seed,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=width,
        intermediate_size=width,
        **LLAMA,
    )
    models.save_model(model, tokenizer, folder)


def write_rows(path: Path, numbers: range) -> None:
    rows = []
    for n in numbers:
        question = {"role": "user", "content": f"{n // 12} + {n % 12}?"}
        answer = {"role": "assistant", "content": TEXTS[n]}
        rows.append({"id": f"sum-{n}", "messages": [question, answer]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher that knows the sums, others that fit less well, and the sums."""
    folder = tmp_path_factory.mktemp("world")
    tokenizer = newborn.train_tokenizer(iter(TEXTS), 300)
    write_rows(folder / "rows.jsonl", range(0, 144, 3))
    write_rows(folder / "few.jsonl", range(0, 144, 12))
    write_rows(folder / "heldout.jsonl", range(1, 144, 6))
    make_model(folder / "student", tokenizer, 1, 16)
    make_model(folder / "newborn", tokenizer, 2, 32)
    make_model(folder / "padded", tokenizer, 3, 32, padding=24)
    make_model(folder / "as_wide", tokenizer, 4, 16)
    letters = newborn.train_tokenizer(iter(TEXTS), 300, isolate=r"\d|[a-z]")
    make_model(folder / "foreign", letters, 5, 32)
    learn(sft, folder, "taught", model=folder / "newborn", num_epochs=6.0, lr=0.01)
    (folder / "taught" / "model").rename(folder / "teacher")
    return folder


def learn(stage: Any, world: Path, name: str, **knobs: Any) -> dict[str, Any]:
    """Runs a stage in a folder of this name, which may hold what an earlier run left there."""
    defaults: dict[str, Any] = {"data": world / "rows.jsonl"}
    if stage is not score:
        defaults |= {"model": world / "student", "batch_size": 8, "lr": 0.01, "checkpoint_steps": 2}
        budgets = ("num_epochs", "num_tokens", "num_flops")
        defaults |= {} if any(budget in knobs for budget in budgets) else {"num_epochs": 1.0}
    if stage is distill:
        defaults |= {} if "distributions" in knobs else {"teacher": world / "teacher"}
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in {**defaults, **knobs}.items()}
    path = world / name
    path.mkdir(exist_ok=True)
    out = StageFolder(path, "distill", machine=MACHINE, leads=processes.leads())
    summary: dict[str, Any] = stage.run(stage.Config.model_validate(settings), out)
    return summary


def rows_of(world: Path, name: str) -> list[dict[str, Any]]:
    """What is told of each step, the last word where it was made twice."""
    rows = store.read_jsonl(world / name / "metrics.jsonl")
    return list({row["step"]: row for row in rows}.values())


def losses(world: Path, name: str) -> list[float]:
    return [row["loss"] for row in rows_of(world, name)]


def log_of(world: Path, name: str) -> str:
    return (world / name / "log.txt").read_text()


@pytest.fixture(scope="module")
def live(world: Path) -> dict[str, Any]:
    return learn(distill, world, "live")


@pytest.fixture(scope="module")
def kept(world: Path) -> Path:
    """The teacher's whole distribution, as stage `score` keeps it."""
    num_top = len(models.load_tokenizer(world / "teacher"))
    learn(score, world, "kept", teacher=world / "teacher", num_top=num_top, temperatures=[1.0, 2.0])
    return world / "kept" / "distributions"


# -- live ---------------------------------------------------------------------------------------


def naive_step(world: Path, rows: list[int], temperature: float, alpha: float) -> tuple[Any, Any]:
    """Loss and gradient norm of one step, one row at a time, with whole logits."""
    tokenizer = models.load_tokenizer(world / "student")
    student, teacher = (models.load_model(world / name) for name in ("student", "teacher"))
    lines = (world / "rows.jsonl").read_text().splitlines()
    total, num = torch.zeros(()), 0
    for row in rows:
        question, answer = (m["content"] for m in json.loads(lines[row])["messages"])
        ids, mask = chat.encode_example(tokenizer, [Message("user", question)], answer)
        learned = torch.tensor(mask[1:]).bool()
        own = student(torch.tensor([ids])).logits[0, :-1][learned]
        with torch.no_grad():
            theirs = teacher(torch.tensor([ids])).logits[0, :-1][learned]
        soft = kl_div(
            (own / temperature).log_softmax(-1),
            (theirs / temperature).log_softmax(-1),
            log_target=True,
            reduction="sum",
        )
        hard = cross_entropy(own, torch.tensor(ids[1:])[learned], reduction="sum")
        total = total + alpha * temperature**2 * soft + (1 - alpha) * hard
        num += int(learned.sum())
    (total / num).backward()
    norm = torch.nn.utils.get_total_norm(p.grad for p in student.parameters())
    return (total / num).item(), norm.item()


def test_a_step_equals_plain_transformers_with_whole_logits(world, live):
    first = rows_of(world, "live")[0]
    import numpy as np

    rows = np.random.default_rng(store.seed_of(0, "distill")).permutation(48)[:8].tolist()
    loss, norm = naive_step(world, rows, 2.0, 0.5)
    # float32 in another order of summation
    assert first["loss"] == pytest.approx(loss, rel=2e-5)
    assert first["grad_norm"] == pytest.approx(norm, rel=2e-4)
    assert first["soft"] + first["hard"] == pytest.approx(first["loss"], rel=1e-5)
    assert live["num_steps"] == 6


def test_the_teachers_work_counts(world, live):
    tokens = live["loss_tokens"] + live["prompt_tokens"]
    sizes = [models.num_parameters(models.load_model(world / n)) for n in ("student", "teacher")]
    assert live["flops"] == pytest.approx(tokens * (6 * sizes[0] + 2 * sizes[1]))
    learn(distill, world, "budget", num_flops=3.5 * live["flops"] / 6)
    assert len(rows_of(world, "budget")) == 4
    assert losses(world, "budget")[0] == losses(world, "live")[0]  # the same examples, too


# -- cached -------------------------------------------------------------------------------------


def test_cached_with_all_tokens_equals_live(world, live, kept):
    summary = learn(distill, world, "cached", distributions=kept)
    # Log-probabilities are kept in float16: 11 bits, and six steps that build on one another
    assert losses(world, "cached") == pytest.approx(losses(world, "live"), rel=1e-3)
    assert summary["teacher"]["method"] == "top_k"
    student = models.num_parameters(models.load_model(world / "student"))
    tokens = live["loss_tokens"] + live["prompt_tokens"]
    assert summary["flops"] == pytest.approx(6 * student * tokens)


def test_what_the_student_has_no_row_for_is_left_out_of_a_cache_too(world):
    """The teacher's padding, 24 rows, of which a fresh one says as much as of any."""
    padded = {"teacher": world / "padded"}
    num_top = len(models.load_tokenizer(world / "padded"))
    learn(score, world, "kept_padded", **padded, num_top=num_top, temperatures=[2.0])
    cached = {"distributions": world / "kept_padded" / "distributions"}
    learn(distill, world, "padded_cached", **cached, divergence="jsd")
    learn(distill, world, "padded_live", **padded, divergence="jsd")
    wanted = pytest.approx(losses(world, "padded_live"), rel=1e-3)  # float16, and six steps
    assert losses(world, "padded_cached") == wanted


def test_a_cache_of_another_teacher_or_temperature_is_refused(world, kept):
    with pytest.raises(UserError, match="is of another teacher"):
        learn(distill, world, "wrong", distributions=kept, teacher=world / "newborn")
    with pytest.raises(UserError, match="has no temperature 3"):
        learn(distill, world, "wrong", distributions=kept, temperature=3.0)
    with pytest.raises(UserError, match="lacks row sum-1"):
        learn(distill, world, "wrong", distributions=kept, data=world / "heldout.jsonl")


def test_random_draws_serve_forward_kl_alone(world):
    learn(score, world, "drawn", teacher=world / "teacher", method="sample", temperatures=[2.0])
    drawn = world / "drawn" / "distributions"
    summary = learn(distill, world, "sampled", distributions=drawn)
    assert summary["teacher"]["method"] == "sample"
    # an estimate from 64 draws a token: the same in the mean, over some 60 tokens a step
    assert losses(world, "sampled") == pytest.approx(losses(world, "live"), rel=0.1)
    with pytest.raises(UserError, match="serve forward_kl alone, not reverse_kl"):
        learn(distill, world, "wrong", distributions=drawn, divergence="reverse_kl")


# -- on-policy ----------------------------------------------------------------------------------


def test_without_texts_of_its_own_on_policy_is_live(world, live):
    learn(distill, world, "none_own", on_policy={**OWN, "student_share": 0.0})
    assert losses(world, "none_own") == losses(world, "live")


def test_the_student_writes_and_is_no_hard_label_of_its_own(world):
    summary = learn(distill, world, "own", on_policy=OWN)
    rows = rows_of(world, "own")
    assert all(row["hard"] == 0 and row["loss"] == pytest.approx(row["soft"]) for row in rows)
    assert all(row["reverse_kl"] > 0 and row["mean_length"] <= 10 for row in rows)
    written = summary["written"]
    assert written["texts"] == 48
    assert written["tokens"] == summary["loss_tokens"]
    assert rows[0]["truncated"] > 0.5  # who knows nothing does not know when to stop
    ledger = store.read_jsonl(world / "own" / "ledger.jsonl")
    assert sum(row["tokens_out"] for row in ledger if row["work"] == "write") == written["tokens"]
    assert sum(r["flops"] for r in ledger if r["work"] != "loss scales") == summary["flops"]


def test_a_share_of_a_step_is_the_students(world):
    learn(distill, world, "shared", on_policy={**OWN, "student_share": 0.25}, alpha=0.0)
    first, plain = rows_of(world, "shared")[0], rows_of(world, "live")[0]
    assert first["soft"] == 0
    assert first["hard"] == pytest.approx(first["loss"])
    # six of eight texts are labels, of as many tokens each as the student writes, about
    assert 0.4 < first["hard"] / (2 * plain["hard"]) < 0.9


def test_small_shares_are_not_rounded_away():
    for share, num in [(0.1, 4), (0.3, 1), (0.5, 3), (1.0, 5), (0.0, 5)]:
        written = [num_written(share, step, num) for step in range(100)]
        assert abs(sum(written) - 100 * share * num) < 1
        assert max(written) - min(written) <= 1


@pytest.mark.parametrize("budget", ["num_flops", "num_tokens"])
def test_a_budget_ends_with_the_step_that_spends_it(world, budget):
    spend = {"num_flops": 3e7, "num_tokens": 500}[budget]
    summary = learn(distill, world, f"own_{budget}", on_policy=OWN, **{budget: spend})
    spent = summary["flops"]
    if budget == "num_tokens":
        spent = summary["loss_tokens"] + summary["prompt_tokens"]
    assert spend <= spent < spend * (1 + 2 / summary["num_steps"])


def test_the_reward_has_the_gradient_of_the_reverse_kl():
    """Over all tokens that the student might draw, as likely as it draws them."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 7, generator=generator).double().requires_grad_()
    teacher = torch.randn(1, 7, generator=generator).double().log_softmax(-1)

    def rows(student: Tensor, tok: Tokens, temperature: float) -> tuple[Tensor, Tensor]:
        return student.log_softmax(-1), teacher.expand(len(student), -1)

    logp = logits.log_softmax(-1)
    kl = (logp.exp() * (logp - teacher)).sum()
    (wanted,) = torch.autograd.grad(kl, logits)
    tok = Tokens(torch.arange(7), torch.ones(7))
    each = rewarded(View(rows), lambda ids: ids)(logits.expand(7, -1), tok)
    mean = (logp.detach()[0].exp() * each).sum()
    (got,) = torch.autograd.grad(mean, logits)
    assert mean.item() == pytest.approx(kl.item(), rel=1e-12)
    assert torch.allclose(got, wanted, atol=1e-12)


# -- going on -----------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"distributions": "kept"},
        {"on_policy": {**OWN, "student_share": 0.5}},
        {"on_policy": {**OWN, "reward": True}, "num_flops": 8e7},
        {"hidden": {"distance": "cosine"}, "teacher": "as_wide"},
    ],
    ids=["live", "cached", "on_policy", "reward", "hidden"],
)
def test_what_was_interrupted_ends_the_same(world, kept, knobs, monkeypatch, request):
    for key, value in {"distributions": kept, "teacher": world / "as_wide"}.items():
        knobs = {**knobs, key: value} if key in knobs else knobs
    name = request.node.callspec.id
    whole = learn(distill, world, f"{name}_whole", **knobs)

    def failpoint(point: str) -> None:
        if point == "distill.step-3":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(store, "failpoint", failpoint)
        with pytest.raises(Killed):
            learn(distill, world, f"{name}_killed", **knobs)
    again = learn(distill, world, f"{name}_killed", **knobs)
    assert again == whole
    assert rows_of(world, f"{name}_killed") == rows_of(world, f"{name}_whole")
    files = [store.hash_tree(world / f"{name}_{end}" / "model") for end in ("killed", "whole")]
    assert files[0] == files[1]


def together(world: str, name: str, knobs: dict[str, Any]) -> None:
    """What each of two processes does."""
    (Path(world) / name).mkdir(exist_ok=True)
    learn(distill, Path(world), name, **knobs)


@pytest.mark.parametrize(
    "micro_batch_tokens", [40, 1000], ids=["several batches for each", "one batch for both"]
)
def test_two_processes_learn_as_one_does(world, micro_batch_tokens):
    from tests.numerics.test_sharding import in_two

    knobs = {
        "teacher": str(world / "as_wide"),
        "on_policy": {**OWN, "student_share": 0.25},
        "hidden": {},
        "micro_batch_tokens": micro_batch_tokens,
    }
    names = [f"{number}_{micro_batch_tokens}" for number in ("one", "two")]
    learn(distill, world, names[0], **knobs)
    assert in_two(together, str(world), names[1], knobs) == [0, 0]
    one, two = (rows_of(world, name) for name in names)
    assert len(one) == len(two) == 6
    for row, other in zip(one, two, strict=True):
        for name in ("loss", "grad_norm", "soft", "hard", "hidden", "reverse_kl"):
            assert other[name] == pytest.approx(row[name], abs=2e-6), name
        for name, part in row.get("scales", {}).items():
            assert other["scales"][name] == pytest.approx(part, abs=1e-6)


def test_adapters_learn_from_a_teacher_too(world):
    summary = learn(distill, world, "adapted", lora={"rank": 2}, on_policy=OWN)
    own, begun = (
        models.load_model(path).state_dict()
        for path in (world / "adapted" / "model", world / "student")
    )
    changed = {name for name in own if not torch.equal(own[name], begun[name])}
    assert changed
    assert all("proj" in name for name in changed)
    assert summary["written"]["texts"] == 48


# -- who fits whom ------------------------------------------------------------------------------


def test_other_padding_is_aligned(world):
    summary = learn(distill, world, "padding", teacher=world / "padded")
    assert summary["teacher"]["shared_tokens"] == 1
    assert 0.8 < summary["teacher"]["shared_mass"] < 1  # a fresh teacher finds padding as likely
    assert "of the teacher's probability is on tokens that both have" in log_of(world, "padding")
    assert all(math.isfinite(loss) for loss in losses(world, "padding"))


def test_another_tokenizer_is_compared_through_the_text(world):
    own = {**OWN, "student_share": 0.5}
    summary = learn(distill, world, "crossed", teacher=world / "foreign", on_policy=own)
    assert 0.5 < summary["teacher"]["same_text"] <= 1
    assert 0.5 < summary["teacher"]["shared_mass"] <= 1
    assert "can be compared" in log_of(world, "crossed")
    reward = {**OWN, "reward": True}
    with pytest.raises(UserError, match="cannot reward the student's"):
        learn(distill, world, "wrong", teacher=world / "foreign", on_policy=reward)


@pytest.mark.parametrize(("context", "fits"), [(24, False), (27, True)])
def test_a_short_teacher_reads_the_students_texts_as_far_as_it_can(world, context, fits):
    """The longest row is 27 of its tokens; a text of the student's goes to the 64 of its own."""
    folder = shutil.copytree(world / "foreign", world / f"reads_{context}")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": context}))
    own = {**OWN, "max_tokens": 100, "student_share": 0.5}
    knobs = {"teacher": folder, "on_policy": own, "data": world / "rows.jsonl"}
    if fits:
        learn(distill, world, f"read_{context}", **knobs)
        assert max(row["mean_length"] for row in rows_of(world, f"read_{context}")) > context
    else:
        with pytest.raises(UserError, match=r"reads 24 tokens, row sum-\d+ is \d+ of its own"):
            learn(distill, world, f"read_{context}", **knobs)


def test_hidden_states_are_matched_where_they_are_equally_wide(world):
    learn(distill, world, "hidden", teacher=world / "as_wide", hidden={"weight": 3.0})
    tokenizer = models.load_tokenizer(world / "student")
    student, teacher = (models.load_model(world / name) for name in ("student", "as_wide"))
    line = (world / "rows.jsonl").read_text().splitlines()[0]
    question, answer = (m["content"] for m in json.loads(line)["messages"])
    (world / "one.jsonl").write_text(line)
    ids, mask = chat.encode_example(tokenizer, [Message("user", question)], answer)
    learned = torch.tensor(mask[1:]).bool()
    with torch.no_grad():
        states = [
            model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, :-1]
            for model in (student, teacher)
        ]
    one = {"data": world / "one.jsonl", "hidden": {"weight": 3.0}, "batch_size": 1}
    learn(distill, world, "one_row", teacher=world / "as_wide", **one)
    wanted = 3 * mse_loss(states[0][learned], states[1][learned])
    assert rows_of(world, "one_row")[0]["hidden"] == pytest.approx(wanted.item(), rel=1e-4)
    with pytest.raises(UserError, match="hidden states are 16 wide, the teacher's 32 wide"):
        learn(distill, world, "wrong", hidden={})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "needs a teacher or its distributions"),
        ({"distributions": "x", "hidden": {}}, "hidden needs a teacher in memory"),
        ({"distributions": "x", "on_policy": {}}, "on_policy needs a teacher in memory"),
        ({"on_policy": {"reward": True, "student_share": 0.5}}, "reward needs texts drawn"),
        ({"on_policy": {"reward": True, "temperature": 0.7}}, "reward needs texts drawn"),
        ({"teacher": "x", "on_policy": {"reward": True}, "alpha": 0.2}, "drop alpha"),
        ({"teacher": "x", "on_policy": {}, "alpha": 0.0}, "nothing is left to learn"),
        ({"teacher": "x", "temperature": 0.001}, "greater than or equal to 0.01"),
        ({"teacher": "x", "divergence": "forwardkl"}, "did you mean 'forward_kl'"),
        ({"teacher": "x", "divergence": {"name": "jsd", "beta": 2.0}}, "less than or equal to 1"),
    ],
)
def test_mistakes_in_a_recipe(settings, told, tmp_path):
    for name in ("x", "data.jsonl"):
        (tmp_path / name).touch()
    settings = {"model": "a/b", "data": "c", "lr": 0.1, "num_epochs": 1.0, **settings}
    with pytest.raises(ValidationError) as raised:
        distill.Config.model_validate(settings)
    from limbeck.config import explain

    assert told in "; ".join(what for _, what in explain(raised.value, distill.Config))


def test_a_divergence_of_ones_own(world):
    mine = "tests.stages.test_distill_stage:half_of_it"
    learn(distill, world, "mine", divergence={"name": mine, "share": 0.25}, alpha=1.0)
    learn(distill, world, "alpha_1", alpha=1.0)
    assert losses(world, "mine")[0] == pytest.approx(losses(world, "alpha_1")[0] / 4, rel=1e-5)


def half_of_it(student: Tensor, teacher: Tensor, *, share: float = 0.5) -> Tensor:
    return share * (teacher.exp() * (teacher - student)).sum(-1)


@pytest.mark.parametrize("name", ["one_for_all", "one_for_each_bucket"])
def test_a_divergence_that_is_not_one_number_a_token_is_refused(world, name):
    mine = f"tests.stages.test_distill_stage:{name}"
    with pytest.raises(UserError, match=r"divergence: gives .* for log-probabilities \[") as raised:
        learn(distill, world, "misshapen", divergence=mine)
    assert "\n" not in str(raised.value)


def one_for_all(student: Tensor, teacher: Tensor) -> Tensor:
    return one_for_each_bucket(student, teacher).sum(-1).mean()


def one_for_each_bucket(student: Tensor, teacher: Tensor) -> Tensor:
    return teacher.exp() * (teacher - student)


# -- what goes wrong ----------------------------------------------------------------------------


def test_a_teacher_that_is_not_finite_stops_it_and_nothing_is_saved(world, monkeypatch):
    hidden = teaching.TokenModel.hidden
    frozen = []

    def broken(self: Any, batch: Any) -> Tensor:
        states = hidden(self, batch)
        if not any(p.requires_grad for p in self.parameters()):
            frozen.append(1)
            if len(frozen) == 5:
                states[0, 0] = math.nan
        return states

    monkeypatch.setattr(teaching.TokenModel, "hidden", broken)
    with pytest.raises(UserError) as raised:
        learn(distill, world, "broken")
    assert "hidden states are not finite in the batch of rows sum-" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (world / "broken" / "model").exists()


def test_a_cache_that_is_not_finite_stops_it_and_nothing_is_saved(world, kept):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(kept, world / "not_finite")
    about = store.read_sealed(folder / "distributions.json")
    (part,) = (folder / name for name in about["parts"])
    tensors = load_file(part)
    tensors["logprobs"][7, 0] = math.nan
    save_file(tensors, part)
    about["files"][part.name] = store.hash_file(part)
    store.write_sealed(folder / "distributions.json", about)
    with pytest.raises(UserError, match=r"logprobs are not finite in rows .*sum-") as raised:
        learn(distill, world, "of_not_finite", distributions=folder)
    assert "\n" not in str(raised.value)
    assert not (world / "of_not_finite" / "model").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"weight": "2"}, "row 1 has the weight '2'"),
        ({"weight": 1e39}, r"row 1 has the weight 1e\+39"),
        ({"messages": [{"from": "human", "value": "a"}] * 2}, "row 1 does not end with"),
        ({"messages": [{"role": "user", "content": "a"}]}, "row 1 does not end with"),
        ({"messages": [{"role": "assistant", "content": None}] * 2}, "row 1 does not end with"),
        ({"id": "sum-0"}, "two texts of the id sum-0"),
    ],
)
def test_rows_that_cannot_be_learned_are_named(world, tmp_path, change, told):
    rows = store.read_jsonl(world / "few.jsonl")[:4]
    rows[1] |= change
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=told) as raised:
        learn(distill, world, "wrong", data=tmp_path / "rows.jsonl", teacher=world / "foreign")
    assert "\n" not in str(raised.value)


def test_rows_whose_weight_is_nothing_in_float32_are_left_out(world, tmp_path):
    rows = store.read_jsonl(world / "few.jsonl")
    for row, weight in zip(rows, (1e-60, 0.0), strict=False):
        row["weight"] = weight
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = learn(distill, world, "weightless", data=tmp_path / "rows.jsonl")
    assert summary["refused"] == {"of no weight": 2}


# -- a mix that is one-sided --------------------------------------------------------------------


def test_a_one_sided_mix_is_told_and_mended(world):
    learn(distill, world, "one_sided", alpha=0.001)
    log = log_of(world, "one_sided")
    assert "warning: alpha 0.001 is one-sided: 0.0% of the gradient is the teacher's" in log
    advised = float(log.partition("set alpha: ")[2].partition(" ")[0])
    summary = learn(distill, world, "mended", alpha=advised)
    assert "one-sided" not in log_of(world, "mended").partition("step 2:")[0]
    found = summary["loss_scales"][0]
    assert found["soft"]["share"] == pytest.approx(0.5, abs=0.01)  # three digits were told
    assert rows_of(world, "mended")[0]["scales"]["hard"] == found["hard"]


def test_a_one_sided_hidden_part_is_told():
    found: scales.Scales = {
        "soft": {"loss": 1.0, "gradient": 0.4, "share": 0.398},
        "hard": {"loss": 1.0, "gradient": 0.6, "share": 0.597},
        "hidden": {"loss": 0.1, "gradient": 0.005, "share": 0.005},
    }
    (told,) = scales.one_sided(found, 0.5, 2.0)
    assert told.startswith("hidden.weight 2 is one-sided: 0.5% of the gradient is the hidden")
    assert "set hidden.weight: 200" in told


def test_a_teacher_that_the_student_equals_already_is_told():
    found: scales.Scales = {
        "soft": {"loss": 0.0, "gradient": 1e-7, "share": 1e-7},
        "hard": {"loss": 1.0, "gradient": 0.6, "share": 1.0},
    }
    (told,) = scales.one_sided(found, 0.5, None)
    assert told.startswith("0.0% of the gradient is the teacher's, and would be at any alpha")


# -- what it is for -----------------------------------------------------------------------------


def kl_to_teacher(world: Path, model: Path) -> float:
    """KL(teacher || student) in nats a token, on texts that neither learned."""
    tokenizer = models.load_tokenizer(model)
    student, teacher = (models.load_model(path) for path in (model, world / "teacher"))
    total, num = 0.0, 0
    for line in (world / "heldout.jsonl").read_text().splitlines():
        question, answer = (m["content"] for m in json.loads(line)["messages"])
        ids, mask = chat.encode_example(tokenizer, [Message("user", question)], answer)
        learned = torch.tensor(mask[1:]).bool()
        with torch.no_grad():
            own, theirs = (
                m(torch.tensor([ids])).logits[0, :-1][learned].log_softmax(-1)
                for m in (student, teacher)
            )
        total += kl_div(own, theirs, log_target=True, reduction="sum").item()
        num += len(own)
    return total / num


def test_distilling_comes_closer_to_the_teacher_than_its_texts_do(world):
    few = {"data": world / "few.jsonl", "num_epochs": 48.0, "checkpoint_steps": 100}
    learn(sft, world, "by_text", **few)
    learn(distill, world, "by_teacher", **few)
    before = kl_to_teacher(world, world / "student")
    by_text, by_teacher = (
        kl_to_teacher(world, world / name / "model") for name in ("by_text", "by_teacher")
    )
    assert by_teacher < 0.7 * by_text < 0.7 * before


def test_a_recipe_may_name_all_of_it(world):
    recipe = {
        "stages": {
            "score": {"data": str(world / "rows.jsonl"), "teacher": str(world / "teacher")},
            "distill": {
                "model": str(world / "student"),
                "data": str(world / "rows.jsonl"),
                "distributions": "./score/distributions",
                "divergence": {"name": "jsd", "beta": 0.1},
                "num_epochs": 1,
            },
        }
    }
    assert load(recipe).stages[1].verb == "distill"
