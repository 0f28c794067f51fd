"""The student in training as an engine, against the engine of what it would be saved as."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from limbeck import models, newborn, store
from limbeck.engines import local
from limbeck.engines.sampling import requests_for
from limbeck.errors import UserError
from limbeck.folder import Machine, StageFolder
from limbeck.problems import make_problem
from limbeck.student.author import Author, pass_at_1
from limbeck.train import adapters
from limbeck.train.config import LoraConfig
from limbeck.train.head import TokenModel
from limbeck.types import Request, Sampling, Trace

PROBLEMS = [make_problem(f"{i}+{i}=", str(2 * i), verifier="number") for i in range(6)]
SAMPLING = Sampling(1.0, max_tokens=9)
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
ARCHITECTURES = ["llama", "gpt2", "phi3"]  # the decoder does not know the last


def make(architecture: str, folder: Path) -> PreTrainedModel:
    tokenizer = newborn.train_tokenizer(iter(f"{i}+{i}={2 * i}" for i in range(99)), 280)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes: dict[str, Any] = {**SIZES, "intermediate_size": 48, "max_position_embeddings": 64}
    if architecture != "gpt2":
        sizes["num_key_value_heads"] = 2
    model = newborn.create_model(architecture, len(tokenizer), 1, **ends, **sizes)
    models.save_model(model, tokenizer, folder)
    return models.load_model(folder)


def folder_of(path: Path) -> StageFolder:
    path.mkdir(parents=True, exist_ok=True)
    return StageFolder(path, "train", "key", Machine(device="cpu", threads=1))


def learn(student: PreTrainedModel, seed: int) -> None:
    """Any other weights, where they learn."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def said(traces: Sequence[Trace]) -> list[tuple[str, tuple[int, ...] | None]]:
    return [(trace.id, trace.token_ids) for trace in traces]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["all weights", "adapters", "nf4"])
def test_it_writes_what_the_saved_student_would(
    architecture: str, kind: str, tmp_path: Path
) -> None:
    if (architecture, kind) == ("gpt2", "nf4"):
        pytest.skip("GPT-2 has no linear layers to quantize")
    student = make(architecture, tmp_path / "base")
    tokenizer = models.load_tokenizer(tmp_path / "base")
    if kind == "nf4":
        adapters.quantize(student, "nf4", torch.float32, "cpu")
    if kind != "all weights":
        adapters.attach(student, LoraConfig(rank=4), seed=1)
    TokenModel(student).train()  # as in training: it attends inside packed documents
    requests = requests_for(PROBLEMS, 2, 7, folder_of(tmp_path / "run"))
    author = Author(student, tokenizer, "student")
    before = said(author.write(requests, SAMPLING))
    learn(student, seed=1)
    learnt = {name: weight.clone() for name, weight in student.named_parameters()}
    assert said(author.write(requests, SAMPLING)) == before, "until it is refreshed"
    author.refresh()
    after = author.write(requests, SAMPLING)
    assert said(after) != before
    assert [trace.id for trace in after] == [request.id for request in requests]
    assert {trace.model for trace in after} == {"student"}
    assert author.flops(after) > 0
    assert student.training
    assert all(torch.equal(learnt[name], p) for name, p in student.named_parameters())

    plain = student if kind == "all weights" else adapters.plain_copy(student)
    plain.set_attn_implementation("sdpa")
    models.save_model(plain, tokenizer, tmp_path / "saved")
    engine = local.connect(model=str(tmp_path / "saved"), device="cpu")
    theirs = {trace.id: trace for trace in engine.generate(requests, SAMPLING)}
    assert said(after) == said([theirs[request.id] for request in requests])
    begun_late = Author(student, tokenizer, "student").write(requests, SAMPLING)
    assert said(begun_late) == said(after), "as after a resume"


class Scripted(Author):
    """Answers right but once for each problem."""

    def __init__(self) -> None:
        self.num_parameters = 10

    def write(self, requests: Sequence[Request], sampling: Sampling) -> list[Trace]:
        def text(request: Request) -> str:
            return request.problem.answer if request.index else "no idea"

        return [
            Trace(r.id, r.problem.id, r.index, text(r), "stop", "scripted", 3, 4) for r in requests
        ]


def test_pass_at_1_is_the_share_of_right_answers(tmp_path: Path) -> None:
    out = folder_of(tmp_path)
    assert pass_at_1(Scripted(), PROBLEMS, SAMPLING, 4, 0, out) == 0.75
    rollout, judged = store.read_jsonl(tmp_path / "ledger.jsonl")
    assert (rollout["tokens_in"], rollout["tokens_out"]) == (24 * 3, 24 * 4)
    assert rollout["flops"] == 2.0 * 10 * 24 * 7
    assert judged["judged_by_model"] == 0


def test_what_a_judge_would_have_to_say_is_refused(tmp_path: Path) -> None:
    problems = [make_problem("Nice?", "yes", verifier="judge")]
    with pytest.raises(UserError, match="its verifier is a judge"):
        pass_at_1(Scripted(), problems, SAMPLING, 1, 0, folder_of(tmp_path))
