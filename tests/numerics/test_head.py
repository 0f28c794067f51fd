"""The chunked head against full logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from limbeck.errors import UserError
from limbeck.train import head
from limbeck.train.batch import Tokens
from limbeck.train.head import TokenModel, chunked_loss, logp_and_entropy
from limbeck.train.losses import cross_entropy

N, C, V = 37, 12, 50


def make_inputs() -> tuple[Tensor, Tensor, Tokens]:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(N, C, generator=generator).requires_grad_()
    weight = torch.randn(V, C, generator=generator).requires_grad_()
    tok = Tokens(
        targets=torch.randint(V, (N,), generator=generator),
        weights=torch.rand(N, generator=generator),
        columns={"teacher": torch.randn(N, V, generator=generator).log_softmax(-1)},
    )
    return hidden, weight, tok


def forward_kl(logits: Tensor, tok: Tokens) -> Tensor:
    """A loss that needs a column of its own."""
    teacher = tok.columns["teacher"]
    return (teacher.exp() * (teacher - logits.log_softmax(-1))).sum(-1)


def full_loss(hidden: Tensor, weight: Tensor, tok: Tokens, name: str) -> Tensor:
    logits = hidden @ weight.T
    if name == "cross_entropy":
        losses = F.cross_entropy(logits, tok.targets, reduction="none")
    else:
        losses = F.kl_div(
            logits.log_softmax(-1), tok.columns["teacher"], reduction="none", log_target=True
        ).sum(-1)
    return (losses * tok.weights).sum()


@pytest.mark.parametrize("tile_tokens", [1, 5, 36, 37, 100, None])
@pytest.mark.parametrize("token_loss", [cross_entropy, forward_kl])
def test_equals_full_logits(token_loss, tile_tokens: int | None) -> None:
    hidden, weight, tok = make_inputs()
    expected = full_loss(hidden, weight, tok, token_loss.__name__)
    expected_gradients = torch.autograd.grad(3.0 * expected, [hidden, weight])
    loss = chunked_loss(hidden, weight, tok, token_loss, tile_tokens)
    loss_gradients = torch.autograd.grad(3.0 * loss, [hidden, weight])
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)  # float32, other order of sums
    for ours, theirs in zip(loss_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # float32 sums of 37


def test_bfloat16_autocast_is_close() -> None:
    hidden, weight, tok = make_inputs()
    expected = full_loss(hidden, weight, tok, "cross_entropy")
    expected_gradients = torch.autograd.grad(expected, [hidden, weight])
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_loss(hidden, weight, tok, cross_entropy, 8)
    ours = torch.autograd.grad(loss, [hidden, weight])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)  # bfloat16 has 8 bits
    for one, other in zip(ours, expected_gradients, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()  # the same 8 bits, three products


def test_without_gradients_only_the_value() -> None:
    hidden, weight, tok = make_inputs()
    with torch.no_grad():
        loss = chunked_loss(hidden, weight, tok, cross_entropy, 8)
    assert not loss.requires_grad
    expected = full_loss(hidden, weight, tok, "cross_entropy")
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0)  # as above


def naive_logp_and_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> list[Tensor]:
    """The definitions, a token at a time."""
    found = []
    for row, target in zip(hidden, targets.tolist(), strict=True):
        logits = weight @ row
        p = logits.exp() / logits.exp().sum()
        found.append(torch.stack([p[target].log(), -(p * p.log()).sum()]))
    return list(torch.stack(found).T)


@pytest.mark.parametrize("tile_tokens", [1, 5, 37, None])
@pytest.mark.parametrize("above", ["both", "logp", "entropy"])
def test_logp_and_entropy_for_any_gradient_from_above(above: str, tile_tokens: int | None) -> None:
    hidden, weight, tok = make_inputs()
    generator = torch.Generator().manual_seed(4)
    upstream = torch.randn(2, N, generator=generator)  # what a policy's objective may send down
    upstream *= torch.tensor([[above != "entropy"], [above != "logp"]])
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    wanted = naive_logp_and_entropy(*exact, tok.targets)
    wanted_gradients = torch.autograd.grad(wanted, exact, list(upstream.double()))
    found = logp_and_entropy(hidden, weight, tok.targets, tile_tokens)
    chosen = [i for i in range(2) if upstream[i].any()]
    gradients = torch.autograd.grad(
        [found[i] for i in chosen], [hidden, weight], [upstream[i] for i in chosen]
    )
    for ours, naive in zip((*found, *gradients), (*wanted, *wanted_gradients), strict=True):
        # float32 against float64: logits of some 10 are off by 1e-6, sums of 37 tokens by more
        torch.testing.assert_close(ours, naive.float(), rtol=1e-5, atol=2e-5)


def test_logp_and_entropy_compute_what_autocast_asks_for() -> None:
    hidden, weight, tok = make_inputs()
    exact = logp_and_entropy(hidden, weight, tok.targets)
    wanted = torch.autograd.grad(exact[0].sum(), [hidden, weight])
    with torch.autocast("cpu", torch.bfloat16):
        found = logp_and_entropy(hidden, weight, tok.targets, 8)
    ours = torch.autograd.grad(found[0].sum(), [hidden, weight])  # outside, as backward is
    for one, other in zip((*found, *ours), (*exact, *wanted), strict=True):
        assert one.dtype == torch.float32
        assert 0 < (one - other).norm() < 0.02 * other.norm()  # the 8 bits of bfloat16


def test_a_frozen_head_gets_no_gradient_and_makes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, tok = make_inputs()
    weight = weight.detach()
    wanted = torch.autograd.grad(full_loss(hidden, weight, tok, "cross_entropy"), hidden)[0]

    def never(*_: object) -> None:
        raise AssertionError("dW of a frozen head")

    monkeypatch.setattr(head, "_add_product", never)
    ours = torch.autograd.grad(chunked_loss(hidden, weight, tok, cross_entropy, 8), hidden)[0]
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)  # float32
    logp, _ = logp_and_entropy(hidden, weight, tok.targets, 8)
    ours = torch.autograd.grad(-(logp * tok.weights).sum(), hidden)[0]
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)


def test_a_bfloat16_model_gets_its_own_type_back() -> None:
    hidden, weight, tok = make_inputs()
    wanted = torch.autograd.grad(full_loss(hidden, weight, tok, "cross_entropy"), [hidden, weight])
    narrow = [x.detach().bfloat16().requires_grad_() for x in (hidden, weight)]
    loss = chunked_loss(*narrow, tok, cross_entropy, 8)
    for one, other in zip(torch.autograd.grad(loss, narrow), wanted, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one - other).norm() < 0.03 * other.norm()  # 8 bits, inputs and all


def test_cross_entropy_of_impossible_tokens_is_finite() -> None:
    """exp(-200) is 0 in float32: the loss must not come from the target's own probability."""
    weight = torch.tensor([[100.0], [-100.0], [0.0]]).requires_grad_()
    hidden = torch.ones(2, 1).requires_grad_()
    tok = Tokens(torch.tensor([1, 0]), torch.tensor([1.0, 2.0]))
    loss = chunked_loss(hidden, weight, tok, cross_entropy)
    assert loss.item() == 200.0
    gradient = torch.autograd.grad(loss, weight)[0]
    assert gradient[:, 0].tolist() == pytest.approx([1.0, -1.0, 0.0], abs=1e-30)


def test_no_tokens_is_no_loss() -> None:
    hidden, weight, tok = make_inputs()
    nothing = slice(0, 0)
    loss = chunked_loss(hidden[nothing], weight, tok[nothing], cross_entropy)
    loss.backward()
    assert loss.item() == 0
    assert weight.grad is not None
    assert not weight.grad.any()


def test_heads_that_do_more_are_refused() -> None:
    config = AutoConfig.for_model(
        "gemma2",
        vocab_size=V,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=16,
    )
    with pytest.raises(UserError, match="final_logit_softcapping"):
        TokenModel(AutoModelForCausalLM.from_config(config))
