"""Greedy answers of a causal or sequence-to-sequence language model, the same in any batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from muscle_hf.compat.peft import check_generates
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.models import ModelFacts
from muscle_hf.evaluation.scoring import cut_at
from muscle_hf.evaluation.tasks import Task


class _StopStrings(StoppingCriteria):
    """Ends a row as soon as its newest text holds a stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], start: int):
        self.tokenizer = tokenizer
        self.stop = stop
        self.start = start
        # A token is at least one byte of text, so this many tokens reach back over the longest stop string.
        self.window = max(len(string.encode()) for string in stop) + 1
        self.finished: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        if self.finished is None:
            self.finished = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        recent = input_ids[:, max(self.start, input_ids.shape[1] - self.window) :]
        open_rows = (~self.finished).nonzero().flatten().tolist()
        texts = self.tokenizer.batch_decode(recent[open_rows], skip_special_tokens=False)
        for row, text in zip(open_rows, texts, strict=True):
            self.finished[row] = any(string in text for string in self.stop)
        return self.finished.clone()


def room_of(facts: ModelFacts, task: Task) -> int:
    """The most tokens a prompt may have; longer ones lose tokens on the left."""
    if facts.encoder_decoder:
        return facts.max_length
    room = facts.max_length - task.max_new_tokens
    if room < 1:
        raise MuscleError(
            f"task {task.name!r} generates up to {task.max_new_tokens} tokens, but the model takes only "
            f"{facts.max_length} in all; lower max_new_tokens"
        )
    return room


def generate(
    facts: ModelFacts, tokenizer: PreTrainedTokenizerBase, task: Task, synced: bool, prompts: list[list[int]]
) -> list[str]:
    """Answers to prompts (token ids) without special tokens, up to the first stop string.

    ``synced``: all processes take part in every step (sharded models).
    """
    check_generates(facts.model)
    base, ends = facts.base, _end_tokens(facts.base, tokenizer)
    ids, mask = facts.pad(prompts, side="left")
    start = 1 if facts.encoder_decoder else ids.shape[1]
    stopping = [_StopStrings(tokenizer, task.stop, start)] if task.stop else []
    # The model's own settings fill every gap of those passed to generate(); sampling, penalties or bad words in them
    # would change what is measured, so they step aside meanwhile.
    own = base.generation_config
    base.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=task.max_new_tokens,
        no_repeat_ngram_size=task.no_repeat_ngram_size,
        eos_token_id=ends or None,
        pad_token_id=facts.pad_id,
        bos_token_id=own.bos_token_id,
        decoder_start_token_id=own.decoder_start_token_id,
        use_cache=True,
    )
    try:
        output = cast("Any", facts.model).generate(
            input_ids=ids,
            attention_mask=mask,
            stopping_criteria=StoppingCriteriaList(stopping),
            synced_gpus=synced,
        )
    finally:
        base.generation_config = own
    answers = []
    for row in output[:, start:].tolist():
        end = next((position for position, token in enumerate(row) if token in ends), len(row))
        answers.append(cut_at(str(tokenizer.decode(row[:end], skip_special_tokens=True)), task.stop))
    return answers


def _end_tokens(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: the model's own and the tokenizer's."""
    config = getattr(model, "generation_config", None)
    own = getattr(config, "eos_token_id", None)
    ends: list[Any] = [*(own if isinstance(own, (list, tuple)) else [own]), tokenizer.eos_token_id]
    return sorted({int(token) for token in ends if token is not None})
