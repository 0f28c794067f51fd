"""What every test of the server starts from: a small model, and the official client."""

from __future__ import annotations

import openai
import pytest

from tests.serve import small


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("serve") / "model"
    small.save_model(place)
    return place


@pytest.fixture(scope="module")
def client(server):
    """Talks to the `server` of the test's own file."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client
