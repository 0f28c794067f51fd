"""Adapters against peft's own model, merges against float weights, moments of 8 bits."""

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import PreTrainedModel

from limbeck import models, newborn, sharding
from limbeck.errors import UserError
from limbeck.train import adapters
from limbeck.train.batch import collate
from limbeck.train.checkpoint import load_newest, save_checkpoint
from limbeck.train.config import LoraConfig
from limbeck.train.eight_bit import AdamW8bit
from limbeck.train.head import TokenModel
from limbeck.train.losses import cross_entropy
from limbeck.train.step import make_optimizer, train_step
from tests.numerics.test_packing import VOCAB, make_examples, make_model

LORA = LoraConfig(rank=4, alpha=8.0)
ARCHITECTURES = ["llama", "qwen3", "gpt2"]
IDS = torch.tensor([[5, 9, 3, 40, 41, 7, 7, 2]])


def make(architecture: str = "llama", **sizes: object) -> PreTrainedModel:
    if architecture == "gpt2":
        sizes = {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64, **sizes}
        ends = {"eos_token_id": 1, "pad_token_id": 0}
        return newborn.create_model("gpt2", VOCAB, 3, **ends, **sizes, initializer_range=0.2)
    return make_model(architecture, **sizes)


def saved(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model as it is loaded from a folder, so that it knows where it came from."""
    model.save_pretrained(folder)
    return models.load_model(folder)


def wake(student: PreTrainedModel) -> None:
    """Adapters are born without effect, B being zero."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


def peft_model(model: PreTrainedModel, seed: int, targets: Any = "all-linear") -> peft.PeftModel:
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    torch.manual_seed(seed)
    return peft.get_peft_model(model, config)


def learn(model: TokenModel, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    return [
        train_step(
            model,
            [collate(make_examples(seed=step % 3))],
            optimizer,
            lr=0.02,
            clip=1.0,
            token_loss=cross_entropy,
        ).loss
        for step in steps
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_student_with_adapters_is_pefts_own(architecture: str) -> None:
    ours = make(architecture)
    theirs = peft_model(copy.deepcopy(ours), seed=11)
    adapters.attach(ours, LORA, seed=11)
    wake(ours), wake(theirs)
    assert type(ours) is type(make(architecture))
    names = [name for name, p in ours.named_parameters() if p.requires_grad]
    assert names
    assert all(".lora_" in name for name in names)
    logits = ours(IDS).logits
    assert torch.equal(logits, theirs(IDS).logits)
    assert not torch.allclose(logits, make(architecture)(IDS).logits, atol=0.01)

    examples = make_examples()
    model = TokenModel(ours)
    model(collate(examples), cross_entropy).backward()
    total = torch.zeros(())
    for example in examples:
        ids = torch.tensor([example.ids])
        losses = torch.nn.functional.cross_entropy(
            theirs(ids).logits[0, :-1], ids[0, 1:], reduction="none"
        )
        total = total + (losses * torch.tensor(example.loss_mask[1:]) * example.weight).sum()
    total.backward()
    grads = {
        name.removeprefix("base_model.model."): p.grad for name, p in theirs.named_parameters()
    }
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-3, atol=1e-4)
        else:
            assert parameter.grad is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_weights_are_pefts_and_say_the_same(architecture: str, tmp_path: Path) -> None:
    ours = saved(make(architecture), tmp_path / "base")
    theirs = peft_model(copy.deepcopy(ours), seed=11)
    adapters.attach(ours, LORA, seed=11)
    wake(ours), wake(theirs)
    said = ours(IDS).logits
    expected = theirs.merge_and_unload().state_dict()
    for weights in (adapters.plain_weights(ours), adapters.plain_copy(ours).state_dict()):
        assert weights.keys() == expected.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(adapters.plain_copy(ours)(IDS).logits, said, rtol=1e-4, atol=1e-4)


def test_the_saved_adapter_is_one_of_pefts(tmp_path: Path) -> None:
    student = saved(make(), tmp_path / "base")
    adapters.attach(student, LoraConfig(rank=4, targets=["q_proj", "v_proj"], dropout=0.3), seed=1)
    wake(student)
    adapters.save_adapter(student, str(tmp_path / "base"), tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(make(), tmp_path / "adapter")
    assert torch.equal(loaded(IDS).logits, student.eval()(IDS).logits)
    assert loaded.peft_config["default"].target_modules == {"q_proj", "v_proj"}
    assert sum(p.numel() for p in student.parameters() if p.requires_grad) == 2 * 4 * (
        24 + 24 + 24 + 12
    )


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantized_base_learns_and_is_merged_in_float(kind: str, tmp_path: Path) -> None:
    base = saved(make(hidden_size=64, intermediate_size=128), tmp_path / "base")
    student = models.load_model(tmp_path / "base")
    size = models.num_parameters(student)
    adapters.quantize(student, kind, torch.float32, "cpu")
    adapters.attach(student, LORA, seed=1)
    assert adapters.num_parameters(student) == size
    held = sum(p.numel() * p.itemsize for p in student.parameters() if not p.requires_grad)
    assert held < 4 * size * 0.5
    model = TokenModel(student)
    losses = learn(model, make_optimizer(model, 0.02), range(12))
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.3
    plain = adapters.plain_copy(student)
    for name, delta in adapters.deltas(student):
        expected = base.get_parameter(name) + delta
        assert torch.equal(plain.get_parameter(name), expected), name
    frozen = "model.embed_tokens.weight"
    assert torch.equal(plain.get_parameter(frozen), base.get_parameter(frozen))


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["q_porj"], "'q_porj' that could adapt: did you mean 'q_proj'?"),
        (["q_proj", "lm_head"], "no linear layer 'lm_head'"),
        (["embed_tokens"], "no linear layer 'embed_tokens'"),
    ],
)
def test_targets_that_are_none(targets: list[str], says: str) -> None:
    student = make(tie_word_embeddings=False)
    with pytest.raises(UserError) as error:
        adapters.attach(student, LoraConfig(targets=targets), seed=0)
    assert says in str(error.value).replace("; ", ": ")
    with pytest.raises(UserError, match="no linear layers that could be quantized"):
        adapters.quantize(make("gpt2"), "nf4", torch.float32, "cpu")


def test_moments_of_8_bits_resume_exactly(tmp_path: Path) -> None:
    def begin() -> tuple[TokenModel, AdamW8bit]:
        model = TokenModel(make(hidden_size=64, intermediate_size=128))
        return model, AdamW8bit(make_optimizer(model, 0.02, weight_decay=0.1))

    model, optimizer = begin()
    expected = learn(model, optimizer, range(6))
    kinds = {type(value) for state in optimizer.state.values() for value in state.values()}
    assert kinds == {torch.Tensor}
    matrix = model.model.get_parameter("model.layers.0.mlp.up_proj.weight")
    assert optimizer.state[matrix]["exp_avg.codes"].dtype == torch.uint8

    first, first_optimizer = begin()
    losses = learn(first, first_optimizer, range(3))
    save_checkpoint(tmp_path, 3, first, first_optimizer, {})
    second, second_optimizer = begin()
    load_newest(tmp_path, second, second_optimizer)
    assert losses + learn(second, second_optimizer, range(3, 6)) == expected
    for one, other in zip(model.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_moments_of_8_bits_are_torchaos_and_near_adamws() -> None:
    import torchao.optim

    runs = []
    for kind in ("ours", "torchao", "exact"):
        model = TokenModel(make(hidden_size=64, intermediate_size=128))
        exact = make_optimizer(model, 0.02)
        if kind == "torchao":
            groups = [{"params": g["params"], "weight_decay": 0.0} for g in exact.param_groups]
            theirs = torchao.optim.AdamW8bit(groups, lr=0.02, betas=(0.9, 0.95))
            losses = []
            for step in range(5):
                theirs.zero_grad()
                batch = collate(make_examples(seed=step % 3))
                loss = model(batch, cross_entropy) / batch.total_weight
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                with torch.compiler.set_stance("force_eager"):
                    theirs.step()
                losses.append(loss.item())
        else:
            losses = learn(model, AdamW8bit(exact) if kind == "ours" else exact, range(5))
        runs.append(torch.tensor(losses))
    ours, torchaos, exact_losses = runs
    torch.testing.assert_close(ours, torchaos, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, exact_losses, rtol=0.05, atol=0.02)
    assert not torch.equal(ours, exact_losses)


@pytest.mark.parametrize("with_adapters", [False, True])
def test_gradient_checkpointing_changes_nothing(with_adapters: bool) -> None:
    gradients = []
    for does in (False, True):
        student = make()
        if with_adapters:
            adapters.attach(student, LORA, seed=2)
            wake(student)
        if does:
            sharding.recompute_activations(student)
        model = TokenModel(student).train()
        model(collate(make_examples()), cross_entropy).backward()
        gradients.append([p.grad for p in student.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)
