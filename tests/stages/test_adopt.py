"""adopt: other words around a question, the same weights."""

from pathlib import Path

import pytest

from limbeck import recipe
from limbeck.errors import UserErrors
from limbeck.folder import StageFolder
from limbeck.stages import adopt

torch = pytest.importorskip("torch")


@pytest.fixture
def base(tmp_path):
    """A base that nobody has given a template."""
    from limbeck import models, newborn

    tokenizer = newborn.train_tokenizer(iter(["User: Assistant: What is 2 + 2?"]), 300)
    tokenizer.chat_template = None
    model = newborn.create_model("llama", len(tokenizer), 3, eos_token_id=tokenizer.eos_token_id,
                                 pad_token_id=tokenizer.pad_token_id, hidden_size=8,
                                 num_hidden_layers=1, num_attention_heads=2)  # fmt: skip
    models.save_model(model, tokenizer, tmp_path / "base")
    return tmp_path / "base"


def adopted(base: Path, folder: Path, template):
    folder.mkdir()
    config = adopt.Config(model=str(base), template=template)
    adopt.run(config, StageFolder(folder, folder.name))
    return folder / "model"


def test_only_adopt_takes_a_base_that_nobody_can_speak_to(base):
    adopts = {"stages": {"adopt": {"model": str(base), "template": "plain"}}}
    assert [stage.name for stage in recipe.load(adopts).stages] == ["adopt"]
    data = {"data": str(base / "config.json"), "num_epochs": 1.0}
    learns = {"stages": {"sft": {"model": str(base), **data}}}
    with pytest.raises(UserErrors, match=r"no chat template; .* stage `adopt`"):
        recipe.load(learns)


@pytest.mark.parametrize("template", ["plain", "r1_zero"])
def test_weights_stay_and_the_template_is_anothers(base, tmp_path, template):
    from limbeck import chat, models
    from limbeck.types import Message

    folder = adopted(base, tmp_path / "adopted", template)
    was, now = (models.load_model(path).state_dict() for path in (base, folder))
    assert was.keys() == now.keys()
    assert all(torch.equal(was[name], now[name]) for name in was)
    tokenizer = models.load_tokenizer(folder)
    prompt = tokenizer.decode(chat.prompt_ids(tokenizer, (Message("user", "What is 2 + 2?"),)))
    expected = {
        "plain": "User: What is 2 + 2?\n\nAssistant: ",
        "r1_zero": f"{chat.R1_ZERO_PREFACE} User: What is 2 + 2?. Assistant:",
    }
    assert prompt == expected[template]


def test_an_answer_ends_with_the_end_of_sequence_and_is_all_that_is_learned(base, tmp_path):
    from limbeck import chat, models
    from limbeck.types import Message

    tokenizer = models.load_tokenizer(adopted(base, tmp_path / "adopted", "plain"))
    ids, mask = chat.encode_example(tokenizer, (Message("user", "2 + 2?"),), "4")
    learned = [token for token, counts in zip(ids, mask, strict=True) if counts]
    assert tokenizer.decode(learned) == "4" + tokenizer.eos_token
