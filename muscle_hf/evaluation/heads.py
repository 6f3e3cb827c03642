"""Classes that a sequence-classification head gives to texts."""

from __future__ import annotations

from dataclasses import replace

from muscle_hf.evaluation.models import ModelFacts


def score_classes(facts: ModelFacts, prompts: list[list[int]]) -> list[list[float]]:
    """Log-probability of each class, in fp32, for each prompt, given as token ids."""
    rows = [prompt[: facts.max_length] for prompt in prompts]
    # Decoder models find the last token of a row by comparing with config.pad_token_id. Where a model has none,
    # any token that no row contains will do, and the answer does not depend on the batch.
    config = facts.base.config.get_text_config()
    own = config.pad_token_id
    pad = own if own is not None else min(set(range(sum(map(len, rows)) + 1)).difference(*rows))
    ids, mask = replace(facts, pad_id=pad).pad(rows, side="right")
    config.pad_token_id = pad
    try:
        logits = facts.model(input_ids=ids, attention_mask=mask).logits
    finally:
        config.pad_token_id = own
    return logits.float().log_softmax(-1).tolist()
