"""Run a model on a task: the same answers whatever the batch size and the number of processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase

from muscle_hf.encoding import encode_pairs, encode_prompts, encode_texts
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.batching import plan_batches, run_batches, token_budget
from muscle_hf.evaluation.choices import ChoiceScorer, group_by_context
from muscle_hf.evaluation.generate import generate, room_of
from muscle_hf.evaluation.models import ModelFacts, score_classes
from muscle_hf.evaluation.partial import PartialAnswers
from muscle_hf.evaluation.predictions import Prediction
from muscle_hf.evaluation.scoring import check_items, predictions_from
from muscle_hf.evaluation.state import untouched
from muscle_hf.evaluation.tasks import Item, Task


def evaluate_task(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    items: Sequence[Item],
    *,
    batch_size: int | None = None,
    progress: bool = True,
    chat: bool = False,
    distributed: bool | None = None,
    kept: PartialAnswers | None = None,
) -> list[Prediction]:
    """Answer every item with a model.

    The model's mode, active adapter, configuration and all random states are afterwards as they were.

    Args:
        model: A causal or encoder-decoder language model, or one with a sequence-classification head for
            classification tasks; plain, PEFT, or wrapped for distributed training. Its active adapter answers.
        tokenizer: The model's tokenizer; it needs no padding token.
        task: What is asked, and when an answer is right.
        items: The items, ids unique.
        batch_size: The most sequences in one forward pass. None: as many as a budget of tokens allows, halved when
            memory runs out.
        progress: Show a progress bar (on the main process).
        chat: Put each prompt into the tokenizer's chat template as the user's turn.
        distributed: Split the items over the processes and give all of them the whole result. None: if
            ``torch.distributed`` is running, in which case every process must make this call.
        kept: Keeps each answer as it comes (on several processes those of the main one, till the end). After an
            interruption the same call goes on from there.

    Returns:
        One prediction per item, in the order of ``items``.

    Raises:
        MuscleError: No items, duplicate ids, an item that lacks what the task needs, a chat template asked for and
            not there, or a single item that does not fit into memory.
    """
    check_items(task, items)
    crew = _Crew.of(model, distributed)
    answers = crew.from_main(lambda: kept.read(items)) if kept is not None else {}
    asked = [item for item in items if item.id not in answers]
    if asked:
        prompts = chat_prompts(tokenizer, asked) if chat else [item.prompt for item in asked]
        facts = ModelFacts.of(crew.inner(model), tokenizer)
        if crew.lockstep:
            # The wrapper must be called, by all processes and for each forward pass alike; a cached prefix makes more.
            facts = replace(facts, model=model, can_share=False)
        with untouched(model):
            run = _Run(facts, tokenizer, task, asked, prompts, batch_size, progress, crew, kept)
            found = _ANSWERS[task.kind](run)
        answers |= {item.id: answer for item, answer in zip(asked, found, strict=True)}
    return predictions_from(task, items, answers)


@dataclass(frozen=True)
class _Run:
    """All that one call of :func:`evaluate_task` is about."""

    facts: ModelFacts
    tokenizer: PreTrainedTokenizerBase
    task: Task
    items: Sequence[Item]
    prompts: list[str]
    batch_size: int | None
    progress: bool
    crew: _Crew
    kept: PartialAnswers | None

    def keep(self, item: int, answer: Any) -> None:
        """An item's raw answer is there."""
        if self.kept is not None and self.crew.rank == 0:
            self.kept.add(self.items[item], answer)

    def compute(
        self,
        work: Sequence[Any],
        run: Callable[[list[Any]], list[Any]],
        length: Callable[[Any], int],
        ready: Callable[[int, Any], None],
        **plan: Callable[[Any], int],
    ) -> list[Any]:
        """Results for all work, each batch computed by one of the processes; ``ready`` is told each, as it comes."""
        from tqdm.auto import tqdm

        budget = token_budget(self.facts.device, self.facts.vocabulary, self.facts.cache_bytes)
        batches = plan_batches(work, length, **plan, batch_size=self.batch_size, tokens=budget)
        mine = self.crew.share_of(batches)
        results = run_batches(work, mine, run, may_split=not self.crew.lockstep)
        hidden, found = not (self.progress and self.crew.rank == 0), {}
        for index, outcome in tqdm(results, self.task.name, sum(map(len, mine)), unit="item", disable=hidden):
            found[index] = outcome
            ready(index, outcome)
        found = self.crew.gather(found)
        for index, outcome in found.items():
            ready(index, outcome)
        return [found[index] for index in range(len(work))]


def _answer_choices(run: _Run, share: bool | None = None) -> list[list[float]]:
    pairs = [(prompt, text) for prompt, item in zip(run.prompts, run.items, strict=True) for text in item.choices]
    owners = [(i, c) for i, item in enumerate(run.items) for c in range(len(item.choices))]
    encoded = encode_pairs(run.tokenizer, pairs, encoder_decoder=run.facts.encoder_decoder)
    groups = group_by_context(encoded, owners, run.facts)
    # In lockstep each batch is one forward pass, on every process.
    batch_size = None if run.crew.lockstep else run.batch_size
    scorer = ChoiceScorer(run.facts, groups, batch_size, share)
    values: list[list[Any]] = [[None] * len(item.choices) for item in run.items]

    def ready(index: int, scores: list[float]) -> None:
        for (item, choice), score in zip(groups[index].owners, scores, strict=True):
            values[item][choice] = score
        if None not in values[item]:  # a group is of one item, which may have several
            run.keep(item, values[item])

    # By context, since that is what is padded first.
    by = {"key": lambda group: len(group.context), "rows": lambda group: len(group.continuations)}
    run.compute(groups, scorer, lambda group: group.length, ready, **by)
    return values


def _answer_texts(run: _Run) -> list[str]:
    room, encode = room_of(run.facts, run.task), encode_prompts if run.facts.encoder_decoder else encode_texts
    ids = [row[-room:] for row in encode(run.tokenizer, run.prompts)]
    answer = partial(generate, run.facts, run.tokenizer, run.task, run.crew.lockstep)
    return run.compute(ids, answer, lambda row: len(row) + run.task.max_new_tokens, run.keep)


def _answer_classes(run: _Run) -> list[list[float]]:
    # Cut here, so that the closing token stays.
    cut = {"truncation": True, "max_length": run.facts.max_length}
    ids = run.tokenizer(run.prompts, **cut, return_attention_mask=False)["input_ids"]
    rows = run.compute(ids, partial(score_classes, run.facts), len, run.keep)
    classes = max(max(item.answers) for item in run.items) + 1
    if len(rows[0]) < classes:
        raise MuscleError(
            f"the model's head has {len(rows[0])} classes, but the items have answers up to {classes - 1}"
        )
    return rows


_ANSWERS: dict[str, Callable[[_Run], list[Any]]] = {
    "choice": _answer_choices,
    "generation": _answer_texts,
    "classification": _answer_classes,
}


def choice_log_likelihoods(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_size: int | None = None,
    share: bool | None = None,
) -> list[float]:
    """Summed log-likelihood (nats) of each continuation given its prompt, pairs without any task around them, under a
    model's active adapter.

    Those with the same prompt ``share`` its computation, None: where that is exact. ``batch_size`` is the most
    sequences in one forward pass; None chooses.
    """
    by_prompt: dict[str, list[int]] = {}
    for index, (prompt, _) in enumerate(pairs):
        by_prompt.setdefault(prompt, []).append(index)
    items = [Item(prompt, prompt, tuple(pairs[index][1] for index in those)) for prompt, those in by_prompt.items()]
    task = Task("pairs", "choice", cast("Any", None))
    with untouched(model):
        facts = ModelFacts.of(model, tokenizer)
        run = _Run(facts, tokenizer, task, items, list(by_prompt), batch_size, False, _Crew(), None)
        found = _answer_choices(run, share)
    values = [0.0] * len(pairs)
    for those, scores in zip(by_prompt.values(), found, strict=True):
        for index, score in zip(those, scores, strict=True):
            values[index] = score
    return values


def chat_prompts(tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> list[str]:
    """The prompts of items in the tokenizer's chat template, each as the user's turn; a MuscleError where it has none,
    or one that cannot be filled."""
    if not getattr(tokenizer, "chat_template", None):
        raise MuscleError("a chat template was asked for, but the tokenizer has none; evaluate without it")
    render: Any = partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
    try:
        return [render([{"role": "user", "content": item.prompt}]) for item in items]
    except Exception as error:  # templates raise Python's own
        raise MuscleError(f"the tokenizer's chat template cannot be filled: {error}") from error


@dataclass(frozen=True)
class _Crew:
    """The processes that share the work; ``lockstep``: each forward pass needs all of them (sharded weights)."""

    rank: int = 0
    size: int = 1
    lockstep: bool = False

    @classmethod
    def of(cls, model: torch.nn.Module, distributed: bool | None) -> _Crew:
        if distributed is False or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return cls()
        size = torch.distributed.get_world_size()
        return cls(torch.distributed.get_rank(), size, lockstep=size > 1 and _is_sharded(model))

    @staticmethod
    def inner(model: torch.nn.Module) -> torch.nn.Module:
        """The model inside DataParallel, DDP, FSDP, DeepSpeed and torch.compile wrappers."""
        from accelerate.utils import extract_model_from_parallel

        return cast("Any", extract_model_from_parallel(model, keep_fp32_wrapper=True, keep_torch_compile=False))

    def from_main(self, make: Callable[[], Any]) -> Any:
        """What the main process makes, on all of them."""
        made = [make() if self.rank == 0 else None]
        if self.size > 1:
            torch.distributed.broadcast_object_list(made)
        return made[0]

    def share_of(self, batches: list[list[int]]) -> list[list[int]]:
        """This process's batches; in lockstep all get as many, the last ones again where they do not divide."""
        mine = batches[self.rank :: self.size]
        if self.lockstep and len(mine) < -(-len(batches) // self.size):
            mine = [*mine, batches[-1]]
        return mine

    def gather(self, found: dict[int, Any]) -> dict[int, Any]:
        """The results of all processes, on each of them."""
        if self.size == 1:
            return found
        parts: list[dict[int, Any]] = [{} for _ in range(self.size)]
        torch.distributed.all_gather_object(parts, found)
        return {index: result for part in parts for index, result in part.items()}


def _is_sharded(model: torch.nn.Module) -> bool:
    """Whether no process holds all weights: FSDP or ZeRO-3."""
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    if any(isinstance(module, (FSDPModule, FullyShardedDataParallel)) for module in model.modules()):
        return True
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())
