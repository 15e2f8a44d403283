"""The language model and the tokenizer of the kit."""

from __future__ import annotations

from cornstarch_core.testing.pieces import WORDS, tiny_language_model, tiny_tokenizer


def test_the_language_model_knows_the_words_of_the_tokenizer():
    """Every word has its own token, with an id inside the embedding table."""
    tokenizer, model = tiny_tokenizer(), tiny_language_model()
    ids = tokenizer(" ".join(WORDS))["input_ids"]
    assert len(set(ids)) == len(WORDS)
    assert tokenizer.unk_token_id not in ids
    assert len(tokenizer) == model.config.vocab_size
