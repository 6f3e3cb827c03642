"""vLLM in this process as the one that answers: many prompts at once, of a model or of a base with a LoRA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from muscle_hf.encoding import encode_pairs, encode_texts
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.engine import chat_prompts
from muscle_hf.evaluation.partial import PartialAnswers, all_answers
from muscle_hf.evaluation.predictions import Prediction
from muscle_hf.evaluation.scoring import check_items, cut_at, predictions_from
from muscle_hf.evaluation.tasks import Item, Task
from muscle_hf.files import StrPath
from muscle_hf.teachers.loading import find_adapter

# What vLLM takes for the largest rank there is.
_RANKS = (8, 16, 32, 64, 128, 256, 512)
# Items that are asked at once; an interrupted run goes on behind the last that were answered.
_AT_ONCE = 1024


@dataclass(frozen=True)
class Vllm:
    """A model (folder or Hub id; a LoRA on ``base``, if not on the one that it records) that vLLM loads into this
    process when it is asked, and frees then. ``options`` are those of ``vllm.LLM``: ``dtype``, ``max_model_len``,
    ``gpu_memory_utilization`` and others."""

    model: str
    base: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def evaluate(
        self, task: Task, items: Sequence[Item], *, chat: bool = False, partial: StrPath | None = None
    ) -> list[Prediction]:
        """Answer every item, as :func:`muscle_hf.evaluation.evaluate_task` does. ``partial`` is a file that keeps
        answers as they come: after an interruption the same call goes on from there."""
        check_items(task, items)
        if task.kind == "classification" or task.no_repeat_ngram_size:
            raise MuscleError(f"vLLM does not do task {task.name!r} (a class head, or no_repeat_ngram_size)")
        kept = None if partial is None else PartialAnswers(partial, [self.model, self.base], task, chat)
        answers = all_answers(kept, items, lambda missing: self._answers(task, missing, chat))
        return predictions_from(task, items, answers)

    def _answers(self, task: Task, items: Sequence[Item], chat: bool) -> Iterator[tuple[Item, Any]]:
        llm, request = self._loaded()
        tokenizer = llm.get_tokenizer()
        for start in range(0, len(items), _AT_ONCE):
            few = items[start : start + _AT_ONCE]
            prompts = chat_prompts(tokenizer, few) if chat else [item.prompt for item in few]
            if task.kind == "generation":
                asked = {"max_tokens": task.max_new_tokens, "stop": list(task.stop) or None}
                # As for a model here, a prompt that is too long loses tokens on the left.
                room = llm.llm_engine.model_config.max_model_len - task.max_new_tokens
                said = _said(llm, request, [ids[-room:] for ids in encode_texts(tokenizer, prompts)], **asked)
                texts = (tokenizer.decode(one.outputs[0].token_ids, skip_special_tokens=True) for one in said)
                yield from zip(few, (cut_at(text, task.stop) for text in texts), strict=True)
                continue
            pairs = [(prompt, text) for prompt, item in zip(prompts, few, strict=True) for text in item.choices]
            encoded = encode_pairs(tokenizer, pairs)
            # The text's own tokens are always among those that are given.
            said = _said(llm, request, [prompt + rest for prompt, rest in encoded], max_tokens=1, prompt_logprobs=0)
            scores = iter(
                sum(
                    place[token].logprob for place, token in zip(one.prompt_logprobs[len(prompt) :], rest, strict=True)
                )
                for one, (prompt, rest) in zip(said, encoded, strict=True)
            )
            yield from ((item, [next(scores) for _ in item.choices]) for item in few)

    def _loaded(self) -> tuple[Any, Any]:
        """vLLM's engine, and its request for the adapter; None for a plain model."""
        try:
            from vllm import LLM
            from vllm.lora.request import LoRARequest
        except ImportError as error:
            raise MuscleError(f"vLLM cannot be used in this environment: {error}") from error
        found = find_adapter(self.model, None, {})
        if found is None:
            return LLM(self.model, **self.options), None
        config: Any = found.config
        rank = max(config.r, *(getattr(config, "rank_pattern", None) or {}).values(), 1)
        most = next((size for size in _RANKS if size >= rank), rank)
        base = self.base or str(found.base)
        revision = None if self.base else found.base_revision
        llm = LLM(base, revision=revision, enable_lora=True, max_lora_rank=most, **self.options)
        return llm, LoRARequest("adapter", 1, str(found.folder))


def _said(llm: Any, request: Any, rows: Sequence[Sequence[int]], **asked: Any) -> list[Any]:
    """Greedy continuations of rows of token ids."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": list(row)} for row in rows]
    return llm.generate(prompts, SamplingParams(temperature=0.0, **asked), lora_request=request)
