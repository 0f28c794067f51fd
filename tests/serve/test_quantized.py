"""A folder of codes is served like any other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck import models, packed
from limbeck.compress import packing
from limbeck.compress.quantize.grid import Grid
from limbeck.engines import local
from limbeck.problems import make_problem
from limbeck.types import Request, Sampling
from tests.serve.echo import serving

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def quantized(folder):
    """The small model's matrices in int8, and what comes into them, too."""
    model, grid, place = models.load_model(folder), Grid("int8"), folder.with_name("int8")
    codes = {
        name: grid.round(module.weight.detach(), *grid.fit(module.weight.detach()))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
    scheme = packed.Scheme("int8", activations="int8")
    packing.save(model, models.load_tokenizer(folder), codes, scheme, place)
    return place


@pytest.fixture(scope="module")
def server(quantized):
    with serving("-m", "limbeck", "serve", str(quantized), "--port", "0") as running:
        yield running


def test_it_says_what_the_engine_says(client, quantized):
    name = client.models.list().data[0].id
    problem = make_problem("3 plus 4 is?", "7", verifier="exact")
    engine = local.connect(model=str(quantized), device="cpu")
    request = Request("one", problem, 0, seed=5)
    (trace,) = engine.generate([request], Sampling(0.0, max_tokens=24))
    messages = [{"role": "user", "content": problem.question}]
    asked = {"model": name, "messages": messages, "temperature": 0, "max_tokens": 24}
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].message.content == trace.text
    assert answer.usage.completion_tokens == trace.completion_tokens
