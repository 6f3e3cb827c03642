"""BERTScore: greedy matching of contextual token embeddings, with an encoder of one's own.

The only metric that runs a model: torch and transformers are imported when it is built. No score is rescaled and no
inverse document frequency is used, the defaults of the reference implementation (Zhang et al. 2020, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from muscle_hf.errors import MuscleError
from muscle_hf.files import readable


class BertScore:
    """The F1 of BERTScore in [-1, 1], in practice in [0, 1].

    Args:
        model: Folder or Hub id of an encoder (safetensors) with its tokenizer.
        layer: Hidden layer whose states are compared; the last by default. Which one correlates best with people
            depends on the encoder.
        batch_size: Texts encoded at once.
        device: Where to run; a GPU if there is one.

    Raises:
        MuscleError: No model is given or it cannot be loaded.
    """

    def __init__(
        self, model: str | None = None, *, layer: int = -1, batch_size: int = 32, device: str | None = None
    ) -> None:
        if model is None:
            raise MuscleError('BERTScore needs an encoder: pass model="folder or Hub id" of one that you trust')
        import torch
        from transformers import AutoModel, AutoTokenizer

        self.layer, self.batch_size = layer, batch_size
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        with readable(f"BERTScore's encoder {model!r}"):
            self.tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            encoder = AutoModel.from_pretrained(model, use_safetensors=True, trust_remote_code=False)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.encoder = encoder.eval().to(self.device)

    def __call__(self, prediction: str, references: Sequence[str]) -> float:
        return self.score_batch([prediction], [references])[0]

    def score_batch(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """F1 of each prediction against the best of its references; equal texts are encoded once."""
        texts = sorted({*predictions, *(text for group in references for text in group)}, key=len)
        states = self._encode(texts)
        pairs = zip(predictions, references, strict=True)
        return [max(_f1(states[prediction], states[text]) for text in group) for prediction, group in pairs]

    def _encode(self, texts: list[str]) -> dict[str, Any]:
        import torch

        limit = min(self.tokenizer.model_max_length, getattr(self.encoder.config, "max_position_embeddings", 512))
        states: dict[str, Any] = {}
        for start in range(0, len(texts), self.batch_size):
            chunk = texts[start : start + self.batch_size]
            batch = self.tokenizer(
                chunk,
                padding=True,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
                return_special_tokens_mask=True,
            )
            special = batch.pop("special_tokens_mask").bool()
            attended = batch["attention_mask"].bool()
            with torch.inference_mode():
                hidden = self.encoder(**batch.to(self.device), output_hidden_states=True).hidden_states[self.layer]
            unit = torch.nn.functional.normalize(hidden.float().cpu(), dim=-1)
            for text, rows, seen, marks in zip(chunk, unit, attended, special, strict=True):
                # Special tokens may be matched but do not count themselves, as in the reference implementation.
                states[text] = (rows[seen], ~marks[seen])
        return states


def _f1(prediction: Any, reference: Any) -> float:
    (rows, own), (other, theirs) = prediction, reference
    if not own.any() or not theirs.any():
        return 0.0
    similarity = rows @ other.T
    precision = float(similarity.max(dim=1).values[own].mean())
    recall = float(similarity.max(dim=0).values[theirs].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
