"""Models that are followed by whole answers: items with choices, v1 in memory or known by a log, and the loss."""

from __future__ import annotations

import builders
import numpy as np
import reference
import torch

from muscle_hf import ChoiceLog
from muscle_hf.evaluation import Item, Task, evaluate_task
from muscle_hf.training.data import encode_items

WORDS = [f"w{index}" for index in range(builders.VOCABULARY)]
CHOICES = (" w30 w31", " w30 w32 w33", " w34", " w35")
TASK = Task("choose", "choice", to_item=lambda row, index: row)


def tokenizer():
    """Of words w0, w1, ...; w2 ends."""
    made = builders.tokenizer(WORDS)
    made.eos_token = "w2"
    return made


def items(count=8, seed=0):
    """Prompts of some words, and four choices."""
    random = np.random.default_rng(seed)
    prompts = [" ".join(WORDS[i] for i in random.integers(3, 30, random.integers(3, 7))) for _ in range(count)]
    return [Item(str(i), prompt, CHOICES, (int(random.integers(4)),)) for i, prompt in enumerate(prompts)]


def old_model():
    """v1."""
    return builders.with_lora(builders.llama(1), 10)


def predictions(asked, model=None):
    """What v1, or another model, answers."""
    return evaluate_task(model or old_model(), tokenizer(), TASK, asked, progress=False)


def rows(asked, *, ended=True, answers_only=False):
    """Items as they are trained on."""
    return encode_items(tokenizer(), asked, answers_only=answers_only, end_answers=ended)


def made(folder, old=None, table=None, **settings):
    """A trainer whose v1 is followed by whole answers."""
    settings = {"processing_class": tokenizer(), "train_dataset": table or rows(items()), **settings}
    return builders.trainer(folder, old_model=old or old_model(), **settings)


def disturb(trainer):
    """The student is no longer v2."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in trainer.student.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))


def loss_of(trainer, table, mask="student_wrong"):
    """Of a student that is no longer v2."""
    disturb(trainer)
    inputs = trainer.data_collator(table)
    with torch.no_grad():
        return trainer.compute_loss(trainer.model, dict(inputs)).item()


def expected_loss(trainer, table, old_number, *, temperature=2.0):
    """By the reference, row by row, from models that are called alone."""
    total, count = 0.0, 0
    for row in table:
        inputs = builders.collate([row])
        student = builders.logits_without_trainer(trainer.student, inputs)[0, :-1].double().numpy()
        with torch.no_grad():
            new = trainer.teachers["new"].logits({"input_ids": inputs["input_ids"]})[0, :-1].double().numpy()
        labels, tokens = np.array(row["labels"])[1:], np.array(row["input_ids"])[1:]
        trained, answer = labels != -100, np.array(row["completion_mask"])[1:] == 1
        number, length = old_number(row)
        answers = np.where(np.cumsum(answer) <= length, np.where(answer, 0, -1), -1)[trained]
        wrong = (student.argmax(-1) != labels)[trained].astype(float)
        old = {} if number is None else {0: number}
        total += reference.loss_of_answers(
            student[trained], old, new[trained], tokens[trained], answers, wrong, temperature
        )
        count += int(trained.sum())
    return total / count


def known_log():
    """What v1 answers to the items."""
    return ChoiceLog(predictions(items()))
