"""Small models whose next tokens depend on every weight: random ones, sharpened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEXTS = ["What is 12 + 345? Let me check that again. The answer is 357.\n\n", "It's 3; don't!"] * 20
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
}


def model(architecture: str, tokenizer: Any, **sizes: Any) -> Any:
    """A random model in which attention and norms matter to the last digit."""
    import torch

    from limbeck import newborn

    few_keys = {} if architecture == "gpt2" else {"num_key_value_heads": 2}
    made = newborn.create_model(
        architecture,
        len(tokenizer),
        3,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{**SIZES, **few_keys, **sizes},
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.ndim == 2:
                weight.mul_(20 if "embed" in name or "wte" in name else 6)
            else:
                weight.add_(0.3 * torch.randn_like(weight))
    return made.eval()


def tokenizer(isolate: str = r"\d") -> Any:
    """Merges beyond words, which llama.cpp's splittings cut."""
    from limbeck import newborn

    return newborn.train_tokenizer(iter(TEXTS), 400, isolate)


def phrases(*texts: str, **flags: Any) -> Any:
    """Bytes and these phrases, as tokens that are not special: no merges at all."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    from limbeck import newborn

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*newborn.SPECIAL_TOKENS, *alphabet]
    made = Tokenizer(BPE(vocab={token: id for id, token in enumerate(vocabulary)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(newborn.SPECIAL_TOKENS)
    made.add_tokens([AddedToken(text, normalized=False, **flags) for text in texts])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token=newborn.END,
        pad_token=newborn.PAD,
        chat_template=newborn.CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def proved(made: Any, tokenizer: Any, kind: str, path: Path) -> dict[str, Any]:
    """Writes a file of this type and proves it."""
    from limbeck.export import gguf, proof, trials, vocabulary

    words = vocabulary.read(tokenizer, made.config.vocab_size)
    gguf.write(made, words, kind, path, name="tiny", log=lambda line: None)
    talks = proof.taken(tokenizer, trials.conversations())
    return proof.prove(path, kind, made, tokenizer, words, talks, lambda line: None)
