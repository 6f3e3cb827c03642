"""What of the teachers is followed: distributions over tokens, or what they say of whole answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers.utils import logging

from muscle_hf.errors import MuscleError
from muscle_hf.teachers.batch import IGNORED, Batch
from muscle_hf.teachers.recorded import MOST_UNKNOWN, require_known
from muscle_hf.teachers.sharding import is_sharded
from muscle_hf.training.row_checks import sample_of

logger = logging.get_logger(__name__)

# Tokens of an answer, above which its likelihood is too small to say anything.
LONGEST_ANSWER = 16
_EVALUATE = "write its scores with muscle-hf evaluate (--split, or --server), and pass old_model=ChoiceLog(FILE)"


def choose_targets(trainer: Any) -> str:
    """What of v1 is followed, ``tokens``, ``answer`` or ``choices``, as ``old_targets`` says; recorded teachers are
    told what is made of their answers."""
    wanted, old, reads = trainer.settings.old_targets, trainer.teachers["old"], trainer.muscle_objective.reads
    logs = [log for teacher in trainer.teachers.values() if (log := teacher.recorded) is not None]
    if wanted == "tokens" and old in logs:
        raise MuscleError("old_targets is 'tokens', but v1 is known by its answers alone; leave it out, or pass v1")
    if old not in logs and (wanted == "choices" or (wanted == "answer" and not old.scores_answers)):
        raise MuscleError(f"old_targets is {wanted!r}, which takes v1's scores of answers: {_EVALUATE}")
    if wanted == "answer" and (without := [log for log in logs if not log.has_likelihoods]):
        raise MuscleError(f"old_targets is 'answer', but {without[0].source} has no log-likelihoods; leave it out")
    short = all(log.has_likelihoods and log.longest <= LONGEST_ANSWER for log in logs)
    form = wanted if wanted in ("answer", "choices") else "answer"
    if logs and wanted != form:
        form = "answer" if short and not reads & {log.role for log in logs} else "choices"
    for log in logs:
        log.form = form
    in_memory = old.scores_answers and trainer.old_targets == "answer"
    numbers = {log.role for log in logs if form == "answer"} | ({"old"} if in_memory else set())
    problem = _problem(trainer, sorted(reads & numbers), in_memory)
    longest = 0
    if in_memory and not problem:
        longest = max((int(batch.of_answers.sum()) for batch in batches_of(trainer, trainer.train_dataset)), default=0)
    # How long the answers of a stream are nobody knows.
    stream = isinstance(trainer.train_dataset, IterableDataset)
    if wanted == "auto" and in_memory and (problem or stream or longest > LONGEST_ANSWER or _in_part(trainer)):
        in_memory = False
        problem = _problem(trainer, [], False) if logs else None
    if problem:
        raise MuscleError(f"v1 or v2 is followed by its answers (old_targets, ChoiceLog), but {problem}")
    if longest > LONGEST_ANSWER and in_memory:
        logger.warning(
            f"old_targets is 'answer', but answers have up to {longest} tokens: of so long texts the likelihood is "
            "next to nothing, and so is what is learned of v1. Try old_targets='tokens'"
        )
    return form if old in logs else "answer" if in_memory else "tokens"


def _problem(trainer: Any, read: list[str], in_memory: bool) -> str | None:
    """Why whole answers cannot be trained on, where masks ``read`` teachers of which numbers are known; None if they
    can."""
    objective, args = trainer.muscle_objective, trainer.args
    if not (trainer.kind.generates_text and trainer.kind.shifts_labels):
        return f"this is a {trainer.kind.name} model: only causal LMs are trained on whole answers"
    if objective.divergence != "kl" or objective.blend != "probabilities" or trainer.settings.calibrate_teachers:
        return "there are no logits for divergence, blend and calibrate_teachers; leave these at their defaults"
    if read:
        masks = f"{objective.mask.name} and {objective.transfer_mask.name}"
        return f"the masks {masks} look at logits ({', '.join(read)}); take student_wrong, mean or always_old"
    if getattr(args, "packing", False) or getattr(args, "padding_free", False):
        return "several rows are packed into one; set packing=False and padding_free=False"
    if in_memory and trainer.teachers["old"].models and is_sharded(trainer.accelerator):
        return f"a sharded v1 (FSDP, ZeRO-3) runs in all processes at once; {_EVALUATE}"
    return None


def needs_completion_mask(trainer: Any) -> bool:
    """Whether rows train on more than their answer, so that only their ``completion_mask`` tells what that is."""
    rows = trainer.train_dataset
    if (
        not trainer.teachers["old"].scores_answers
        or isinstance(rows, IterableDataset)
        or not hasattr(rows, "__getitem__")
    ):
        return False
    first = rows[0]
    return {"labels", "completion_mask"} <= first.keys() and any(
        y != IGNORED and not own for y, own in zip(first["labels"], first["completion_mask"], strict=True)
    )


def _in_part(trainer: Any) -> bool:
    """Whether v1 reads most answers in part alone, such as all but what v2's chat template puts behind them."""
    found = [
        bool(missing.any()) and not bool(missing.all())
        for batch in batches_of(trainer, trainer.train_dataset)
        if (missing := trainer.teachers["old"].silent(batch.answers())) is not None
    ]
    return sum(found) > MOST_UNKNOWN * len(sample_of(trainer.train_dataset))


def batches_of(trainer: Any, rows: Any) -> Iterator[Batch]:
    """Batches of one row each, from all over a data set; none of a stream. A collator that packs rows is refused."""
    found, first = (trainer.batch_of(inputs) for inputs in trainer.sample(rows)), sample_of(rows)[:2]
    if len(first) > 1:
        dataset, collate = trainer.rows_and_collator(rows, "training")
        with torch.random.fork_rng(devices=[]):
            trainer.batch_of(collate([dataset[0], dataset[1]])).require_apart("whole answers")
    return found


def require_known_rows(trainer: Any, batches: Iterable[Batch], name: str) -> None:
    """Refuse rows, in ``batches`` of the data set ``name``, that recorded teachers do not know: too many of them, or
    all answers, or choices that cannot be told apart."""
    logs = [log for teacher in trainer.teachers.values() if (log := teacher.recorded) is not None]
    unknown: dict[str, list[str]] = {log.role: [] for log in logs}
    asked, spoken = 0, dict.fromkeys(unknown, False)
    for batch in batches:
        asked += len(batch)
        for log in logs:
            log.targets(batch)  # says whether choices can be told apart
            spoken[log.role] |= (silent := log.silent(batch)) is None or not bool(silent.all())
            unknown[log.role] += [trainer.tokenizer.decode(batch.inputs["input_ids"][i]) for i in log.unknown(batch)]
    for log in logs if asked else ():
        require_known(unknown[log.role], asked, log, f"rows of the {name}")
        if not spoken[log.role]:
            raise MuscleError(
                f"the prompts of the {name} are in {log.source}, but no row is one of them with an answer of the "
                f"{log.role} model. Are the rows made as encode_answers of muscle_hf.training.data makes them, and "
                "trained on the whole answer?"
            )
