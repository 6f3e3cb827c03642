"""What evaluation must know of a model: where it lives, what its forward takes, how its batches are padded."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from muscle_hf.teachers.forward import context_window


@dataclass(frozen=True)
class ModelFacts:
    """A model, ready to be asked: ``base`` without PEFT's shell (adapters stay active in it), the width of its output
    head, the most that a token can occupy in the cache of keys and values, a token to pad with (always masked, so any
    will do), the arguments that its forward takes, and whether a cached prefix may be tried (no virtual tokens, no
    lockstep of processes)."""

    model: torch.nn.Module
    base: PreTrainedModel
    device: torch.device
    dtype: torch.dtype
    vocabulary: int
    cache_bytes: int
    max_length: int
    pad_id: int
    arguments: frozenset[str]
    can_share: bool

    @classmethod
    def of(cls, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> ModelFacts:
        """Find out about a model (PEFT or plain)."""
        base = cast("PreTrainedModel", getattr(model, "get_base_model", lambda: model)())
        embedding: Any = base.get_input_embeddings().weight
        config = base.config
        text_config = config.get_text_config()
        peft_config: Any = getattr(model, "active_peft_config", None)
        virtual_tokens = bool(getattr(peft_config, "is_prompt_learning", False))
        arguments = frozenset(inspect.signature(base.forward).parameters)
        if virtual_tokens:
            arguments -= {"logits_to_keep", "position_ids"}
        own = getattr(text_config, "pad_token_id", None)
        pad_id: Any = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, own) if i is not None), 0)
        dtype = next((p.dtype for p in base.parameters() if p.dtype.is_floating_point), torch.float32)
        # Tokenizers without a limit carry a huge number instead.
        limit = int(tokenizer.model_max_length)
        width = getattr(text_config, "hidden_size", 1024) * getattr(text_config, "num_hidden_layers", 12)
        return cls(
            model=model,
            base=base,
            device=embedding.device,
            dtype=dtype,
            vocabulary=text_config.vocab_size,
            cache_bytes=2 * width * dtype.itemsize,
            max_length=cast("int", context_window(model, limit if limit < 10**12 else 2048)),
            pad_id=pad_id,
            arguments=arguments,
            can_share=not virtual_tokens,
        )

    @property
    def encoder_decoder(self) -> bool:
        """Whether the model reads with an encoder and answers with a decoder."""
        return bool(getattr(self.base.config, "is_encoder_decoder", False))

    def pad(
        self, rows: Sequence[Sequence[int]], *, side: Literal["left", "right"]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask of a batch, both int64 of shape ``(rows, longest)``."""
        width = max(map(len, rows))
        order = -1 if side == "left" else 1
        ids = [[*row[::order], *[self.pad_id] * (width - len(row))][::order] for row in rows]
        mask = [([1] * len(row) + [0] * (width - len(row)))[::order] for row in rows]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)

    def positions(self, mask: torch.Tensor, last: int | None = None) -> dict[str, Any]:
        """``position_ids`` that do not count padding, if the model takes them; of the ``last`` columns only."""
        if "position_ids" not in self.arguments:
            return {}
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return {"position_ids": positions if last is None else positions[:, -last:]}

    def keep(self, last: int) -> dict[str, Any]:
        """Ask for the logits of the ``last`` columns only, if the model can."""
        return {"logits_to_keep": last} if "logits_to_keep" in self.arguments else {}


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
