"""v1 and v2 asked together where answers are generated: greedy, every token by the mean of their probabilities."""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakKeyDictionary

import torch
from study import Cell
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from muscle_hf.compat.transformers import CACHE
from muscle_hf.evaluation import Prediction, evaluate_task, read_predictions, write_predictions
from muscle_hf.evaluation.loading import load_for_evaluation


def average(model: PreTrainedModel, other: PreTrainedModel) -> None:
    """From now on a model's logits are the logarithm of the mean of both models' probabilities.

    Args:
        model: Causal language model that generates with a cache.
        other: One with the same vocabulary; it is given what the model is given.
    """
    caches: WeakKeyDictionary[Cache, Cache] = WeakKeyDictionary()

    def hook(_: PreTrainedModel, args: tuple, given: dict[str, Any], output: CausalLMOutputWithPast) -> Any:
        own = caches.setdefault(given[CACHE], DynamicCache(config=other.config))
        theirs = other(*args, **{**given, CACHE: own}).logits
        both = torch.logaddexp(output.logits.float().log_softmax(-1), theirs.float().log_softmax(-1))
        output.logits = both - math.log(2)
        return output

    model.register_forward_hook(hook, with_kwargs=True)


def answers_together(cell: Cell) -> list[Prediction]:
    """The answers of both versions to the test items, asked once; both have one vocabulary."""
    file = cell.answers_file(cell.both_folder, "test")
    if not file.is_file():
        task, _, splits = cell.rows
        sides = [cell.version(side) for side in ("old", "new")]
        (old, _), (new, tokenizer) = (load_for_evaluation(side.base, task, adapter=side.adapter) for side in sides)
        average(new.get_base_model(), old.get_base_model())
        write_predictions(file, evaluate_task(new, tokenizer, task, splits.test, batch_size=256, progress=False))
    return read_predictions(file)
