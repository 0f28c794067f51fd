"""lm_eval talks to the server as it talks to any: one task that writes, one that compares."""

from __future__ import annotations

import json

import pytest
import torch

from limbeck import models
from tests.serve.echo import serving

torch.set_num_threads(1)

CHOICES = [" 7 legs", " 8 fox", " 9 minus", " until done"]


@pytest.fixture(scope="module")
def results(folder, tmp_path_factory):
    """What lm_eval makes of both tasks, with every sample."""
    lm_eval = pytest.importorskip("lm_eval")
    data = tmp_path_factory.mktemp("data") / "data.jsonl"
    rows = [{"question": f"{a} plus 4 is", "answer": " 7 legs"} for a in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "num_fewshot": 0,
    }
    writes = {
        **shared,
        "task": "writes",
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["legs", "\n\n"], "max_gen_toks": 12, "temperature": 0},
        "metric_list": [{"metric": "exact_match"}],
    }
    compares = {
        **shared,
        "task": "compares",
        "output_type": "multiple_choice",
        "doc_to_choice": CHOICES,
        "doc_to_target": 0,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    with serving("-m", "limbeck", "serve", str(folder), "--port", "0") as server:
        return lm_eval.simple_evaluate(
            model="local-completions",
            model_args={
                "model": "/".join(folder.parts[-2:]),
                "tokenizer": str(folder),
                "tokenizer_backend": "huggingface",
                "base_url": f"{server.url}/v1/completions",
                "num_concurrent": 4,
                "max_length": 512,
                "max_retries": 1,
            },
            tasks=[writes, compares],
            log_samples=True,
            bootstrap_iters=0,
        )


def test_generation(results, folder):
    model, tokenizer = models.load_model(folder), models.load_tokenizer(folder)
    samples = results["samples"]["writes"]
    assert len(samples) == 4
    for sample in samples:
        ids = torch.tensor([tokenizer(sample["doc"]["question"]).input_ids])
        written = model.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :]
        text = tokenizer.decode(written, skip_special_tokens=True).partition("legs")[0]
        assert sample["resps"][0][0] == text.partition("\n\n")[0]


def test_log_likelihood(results, folder):
    model, tokenizer = models.load_model(folder), models.load_tokenizer(folder)
    samples = results["samples"]["compares"]
    assert len(samples) == 4
    for sample in samples:
        prompt = tokenizer(sample["doc"]["question"]).input_ids
        for choice, reply in zip(CHOICES, sample["filtered_resps"], strict=True):
            whole = tokenizer(sample["doc"]["question"] + choice).input_ids
            ids = prompt + whole[len(prompt) :]  # what lm_eval sends, even where a token spans both
            with torch.no_grad():
                logp = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            expected = logp.gather(1, torch.tensor(ids[1:])[:, None])[len(prompt) - 1 :].sum()
            assert float(reply[0]) == pytest.approx(expected.item(), abs=1e-3)
