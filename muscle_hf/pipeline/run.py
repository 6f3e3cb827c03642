"""A run from settings to a table: every step that is missing is done, and a step that is done is not repeated."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

from peft import PeftModel
from transformers import TrainerCallback
from transformers.utils import logging

from muscle_hf.choice_log import ChoiceLog
from muscle_hf.compare import compare, measure_targets, source_of
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.predictions import Prediction, read_predictions, write_predictions
from muscle_hf.evaluation.registry import describe_data, load_task, python_variable
from muscle_hf.evaluation.server import evaluate_task_on_server
from muscle_hf.evaluation.tasks import Task
from muscle_hf.files import alone, write_json, write_text
from muscle_hf.hub.completing import complete_card
from muscle_hf.hub.publishing import prepare_repository, publish
from muscle_hf.pipeline import sides, steps
from muscle_hf.pipeline.config import ModelSettings, RunSettings
from muscle_hf.pipeline.data import Splits, TrainingData, load_splits, source_of_tests
from muscle_hf.pipeline.once import Once, fingerprint, read_note, weights_key
from muscle_hf.pipeline.table import (
    COMPAT,
    CONTROL,
    NEW,
    OLD,
    PREDICTIONS,
    RESULT_FILE,
    Result,
    load_result_predictions,
)
from muscle_hf.pipeline.teaching import FOLDER, Teaching, choose_teaching, scores_because
from muscle_hf.prompts import TransferPrompts
from muscle_hf.teachers.start import require_own_tokens, start_from
from muscle_hf.trainer import MuscleTrainer

logger = logging.get_logger(__name__)
R = TypeVar("R", bound="Run")

TARGETS_FILE = "targets.json"
VERSIONS = {OLD: "v1", NEW: "v2"}


def run(settings: RunSettings, say: Callable[[str], None] = print) -> Result | None:
    """Do a whole run; ``say`` is told its steps, on the main process. Settings that do not fit together are refused
    before anything is trained.

    Gives the figures, also written to ``result.json`` in the output folder, beside ``old``, ``new``, ``control`` and
    ``muscle`` (the adapters that were trained) and ``predictions``; None where no task is evaluated.
    """
    return Run.of(settings, say).whole()


def complete_run_card(folder: Path, words: Mapping[str, Any]) -> None:
    """Put the flips of a finished run on the card of its compatibility adapter, and what else it shall say."""
    predictions = load_result_predictions(folder)
    # The control is the baseline of the errors that come back.
    labels = {OLD: "old", NEW: "new", COMPAT: "compat", CONTROL: "control: plain training for as long"}
    labels = {name: label for name, label in labels.items() if name in predictions}
    sources = [source_of(predictions[name], name) for name in labels]
    comparison = compare(*sources, labels=list(labels.values()))
    complete_card(folder / COMPAT, words, comparison=comparison, label=labels[COMPAT])


class Run:
    """A run whose steps can be done one by one; each needs those before it, and does them where they are missing.
    ``callbacks`` are added to every trainer. ``old``: task and rows of v1, where it is asked in words of its own. A
    task (None: nothing is evaluated) must be for causal LMs."""

    test_data: Mapping[str, str | None] = {}
    callbacks: Sequence[TrainerCallback] = ()

    @classmethod
    def of(cls: type[R], settings: RunSettings, say: Callable[[str], None] = print) -> R:
        """The run that settings describe, with its rows loaded; arguments and errors as of :func:`run`."""
        task = None if settings.task is None else load_task(settings.task)
        splits, old = load_splits(task, settings.data), None
        if task is not None and settings.old.task is not None:
            old = sides.in_own_words(settings.old, task, splits, settings.data)
        run = cls(settings, task, splits, say, old)
        if task is not None:
            place = source_of_tests(settings.data, task)
            run.test_data = describe_data(task, place, settings.data.test.split)
        return run

    def __init__(
        self,
        settings: RunSettings,
        task: Task | None,
        splits: Splits,
        say: Callable[[str], None] = print,
        old: tuple[Task, Splits] | None = None,
    ):
        if task is not None and task.kind == "classification":
            raise MuscleError(f"the task {task.name!r} is for a classification head, and runs train causal LMs")
        tasks = {OLD: task if old is None else old[0], NEW: task}
        if settings.max_new_tokens is not None:
            change = {"max_new_tokens": settings.max_new_tokens}
            tasks = {name: its and dataclasses.replace(its, **change) for name, its in tasks.items()}
        self.settings, self.task, self.splits = settings, tasks[NEW], splits
        self.folder = Path(settings.output_dir)
        self._process = steps.process_state(settings.training)
        self._say = say if self._process.is_main_process else lambda text: None
        self._once = Once(self.folder, self._process, self._say)
        self._how = steps.loading(settings)
        self._starts_from_old = settings.training.get("start_from", "new") == "old"
        transfer = settings.data.transfer
        self._chooses_target = transfer is not None and transfer.target == "chosen" and bool(splits.transfer)
        checker = None if transfer is None else transfer.checker
        self._checker = None if checker is None else python_variable(checker)
        if not (checker is None or callable(self._checker)):
            raise MuscleError(f"data.transfer.checker: {checker} is no function but {self._checker!r}")
        if self._chooses_target and (task is None or task.kind != "choice" or not splits.validation):
            raise MuscleError("data.transfer.target: chosen is for tasks with choices, and needs validation rows")
        self._check_folders()
        rows = {OLD: splits if old is None else old[1], NEW: splits}
        self.sides = {name: sides.side_of(self._version(name), tasks[name], rows[name]) for name in VERSIONS}
        if self._starts_from_old:
            steps.check_start(settings.old, settings.new, settings.lora)
            require_own_tokens(self.level)
        self.in_other_words = self.sides[OLD].splits != self.sides[NEW].splits
        if settings.compatibility and self.in_other_words and not self.answers_only:
            raise MuscleError(
                "v1 is asked in other words than v2, so that it can be followed in the answers alone; train on these: "
                "training.trained_tokens: completion (with trainer: trl, training.completion_only_loss: true)"
            )
        sides.check_answers(settings.old, self.sides[OLD], settings.compatibility, self._chooses_target)
        self.data = self._tokenized(NEW)
        defaults = {"report_to": "none", "logging_strategy": "epoch", "disable_tqdm": False, "save_strategy": "no"}
        defaults["eval_strategy"] = "epoch" if self.data.validates else "no"
        self.training = {**defaults, **settings.training}
        # Trainer's default is the folder of the adapter, which has the same name in every run.
        self.training["hub_model_id"] = self.training.get("hub_model_id") or self.folder.absolute().name

    @property
    def cache_folder(self) -> Path:
        """Where what the teachers say is kept, if it is and the settings name no other place."""
        return self.folder / FOLDER

    @property
    def answers_only(self) -> bool:
        """Whether nothing but answers is trained on."""
        training = self.settings.training
        return training.get("trained_tokens") == "completion" or training.get("completion_only_loss") is True

    @cached_property
    def level(self) -> str:
        """How far the tokenizers of both versions agree."""
        return sides.level_of(self.sides[OLD], self.sides[NEW])

    def whole(self) -> Result | None:
        """All steps, in no other process at the same time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with alone(self.folder / RESULT_FILE) if self._process.is_main_process else contextlib.nullcontext():
            return self._whole()

    def _whole(self) -> Result | None:
        finishes = self._process.is_main_process and self.settings.compatibility
        to_hub: dict[str, Any] | None = None
        if finishes:
            arguments = steps.training_arguments(self.settings.config_class, self.training, self.folder / COMPAT)
            if arguments.push_to_hub:
                to_hub = {
                    "repo_id": arguments.hub_model_id,
                    "token": arguments.hub_token,
                    "private": arguments.hub_private_repo,
                    "revision": arguments.hub_revision,
                }
                prepare_repository(**to_hub)
        for name in self.models:
            self.adapter(name)
        result = None if self.task is None else self.evaluate()
        if finishes:
            self._complete_card()
            if to_hub is not None:
                publish(self.folder / COMPAT, **to_hub)
        return result

    @property
    def models(self) -> list[str]:
        """The models of the run, in the order of the table."""
        if not self.settings.compatibility:
            return [OLD, NEW]
        return [OLD, NEW, *([CONTROL] if self.settings.control else []), COMPAT]

    def _complete_card(self) -> None:
        """On the compatibility adapter's card: the flips, the task, its data set on the Hub, what ``card`` says."""
        words = self.settings.card
        if self.task is not None:
            source = self.task.source if self.settings.data.source is None else None
            words = {"task": self.task.name, **({"datasets": [source.path]} if source is not None else {}), **words}
            complete_run_card(self.folder, words)
        elif words:
            complete_card(self.folder / COMPAT, words)

    # ---- Adapters ----

    def _check_folders(self) -> None:
        versions = {OLD: self.settings.old, NEW: self.settings.new}
        named = {name: Path(side.adapter).resolve() for name, side in versions.items() if side.adapter}
        for name in self.models:
            if name not in named and (self.folder / name).resolve() in named.values():
                raise MuscleError(
                    f"{self.folder / name} is a task adapter of this run, which would train its own {name} adapter "
                    "there; give it another output_dir"
                )

    def _tokenized(self, name: str) -> TrainingData:
        side = self.sides[name]
        return TrainingData.of(
            side.tokenizer,
            side.splits.train,
            side.splits.validation,
            # Plain trainers do not know the setting, and must train on the same tokens.
            answers_only=self.answers_only,
            end_answers=self.settings.data.end_answers,
        )

    def data_for(self, name: str) -> TrainingData:
        """The rows of a model of the run, in its words, as its tokenizer gives them."""
        return self._old_data if name == OLD else self.data

    @cached_property
    def _old_data(self) -> TrainingData:
        old, new = (self.sides[name] for name in (OLD, NEW))
        alike = old.splits == new.splits and old.tokenizer.chat_template == new.tokenizer.chat_template
        same = alike and old.tokenizer.get_vocab() == new.tokenizer.get_vocab()
        return self.data if same else self._tokenized(OLD)

    def _version(self, name: str) -> ModelSettings:
        return self.settings.old if name == OLD else self.settings.new

    def side(self, name: str) -> ModelSettings:
        """The base of a model of the run, with its adapter, which is trained if it is missing."""
        side = self._version(name)
        if name not in VERSIONS:
            return dataclasses.replace(side, adapter=str(self.adapter(name)), adapter_revision=None)
        if side.adapter or not side.is_here:
            return side
        return dataclasses.replace(side, adapter=str(self.adapter(name)))

    def adapter(self, name: str) -> Path | str:
        """The adapter of a model (``old``, ``new``, ``control`` or ``muscle``), trained if it is missing.

        Gives its folder; for a task adapter that the settings name, what they say.
        """
        if name in VERSIONS:
            return self._task_adapter(name)
        return self._control() if name == CONTROL else self._compatibility()

    def _task_adapter(self, name: str) -> Path | str:
        side = self._version(name)
        if side.adapter or not side.is_here:
            return side.adapter or (side.answers or [cast("Any", side.server).model])[0]
        training, version = self._plain_training(), VERSIONS[name]

        def work(folder: Path) -> None:
            arguments = steps.training_arguments(self.settings.plain_class, training, folder)
            model = steps.task_adapter_model(side, self.settings.lora, self._how, arguments.seed)
            steps.train_plainly(model, self.data_for(name), arguments, name=version, callbacks=self.callbacks)

        return self._once(name, f"Task adapter on {version}", self._task_key(name), work)

    def _task_key(self, name: str) -> str:
        side = self._version(name)
        if side.adapter or not side.is_here:
            return weights_key(side)
        # Of rows that TRL prepares the identity says nothing of tokenizer and template.
        own = (side.tokenizer, side.chat_template and self.sides[name].tokenizer.chat_template)
        return self._key(side, self._plain_training(), *filter(None, own), data=self.data_for(name))

    def _plain_training(self, *, task: bool = True) -> dict[str, Any]:
        """Training arguments of task adapters, or of the control, which trains as the compatibility adapter does."""
        more = self.settings.task_training if task else {}
        return steps.unpublished({**self.training, **more}, self.settings.plain_class)

    def _student(self) -> PeftModel:
        """v2 with its task adapter, to be trained on."""
        dropout = self.settings.student_dropout
        return steps.load_task_adapter(self.side(NEW), self._how, trainable=True, dropout=dropout)

    def _student_key(self, *ingredients: Any) -> str:
        # Where it is not set, adapters that were trained before the setting existed stay done.
        dropout = self.settings.student_dropout
        return self._key(*ingredients, *(() if dropout is None else (dropout,)))

    def _control(self) -> Path:
        training = self._plain_training(task=False)
        if self.splits.transfer and training.get("max_steps", -1) < 1:
            # Its own epochs have no transfer rows. Runs from before this was noted stay as they were.
            steps_taken = read_note(self._compatibility()).get("steps")
            training |= {} if steps_taken is None else {"max_steps": steps_taken}

        def work(folder: Path) -> None:
            arguments = steps.training_arguments(self.settings.plain_class, training, folder)
            model = self._student()
            if self._starts_from_old:
                start_from(model, steps.load_task_adapter(self.side(OLD), self._how, trainable=False))
            steps.train_plainly(model, self.data, arguments, name="control", callbacks=self.callbacks)

        self.adapter(NEW)
        start = "v2's adapter"
        key = [self._task_key(NEW), training]
        if self._starts_from_old:
            self.adapter(OLD)
            start = "v1's adapter on v2"
            key.append(self._task_key(OLD))
        what = f"Control: {start}, trained on with plain cross-entropy"
        return self._once(CONTROL, what, self._student_key(*key), work)

    def _compatibility(self) -> Path:
        def work(folder: Path) -> dict[str, int]:
            trainer = self._cheapest_trainer(folder)
            steps.fit(trainer, name="MUSCLE", callbacks=self.callbacks)
            # As an internal call: it is published at the end of the run, with its flips on the card.
            trainer.save_model(_internal_call=True)
            if trainer.args.should_save:
                trainer.write_card(trainer.run_folder)
            return {"steps": trainer.state.max_steps}

        self.adapter(OLD)
        self.adapter(NEW)
        training = steps.unpublished(self.training | self.target, self.settings.config_class)
        prompts = self.transfer
        transfer = () if prompts is None else (prompts.identity(), prompts.end_answers)
        settings = self.settings.data.transfer
        if settings is not None and settings.checker is not None:
            file = settings.checker.rpartition(":")[0]
            transfer += (hashlib.sha256(Path(file).read_bytes()).hexdigest(),)
        transfer += ("scores",) if scores_because(self) else ()
        key = self._student_key(self._task_key(OLD), self._task_key(NEW), training, *transfer)
        return self._once(COMPAT, "Compatibility adapter", key, work)

    def teaching(self, processes: int | None = None) -> Teaching:
        """How the compatibility adapter gets what the teachers say."""
        return choose_teaching(self, processes or self._process.num_processes)

    def _cheapest_trainer(self, folder: Path) -> MuscleTrainer:
        teaching = self.teaching()
        logs = {name: self.choice_log(name) for name in VERSIONS if teaching.scores or self._version(name).answers}
        try:
            trainer = self.compatibility_trainer(folder, logs=logs, **teaching.training)
        except MuscleError as error:
            if not (teaching.training or teaching.scores):
                raise
            logs = {name: log for name, log in logs.items() if self._version(name).answers}
            self._say(f"Teachers: both models compute in each step ({error})")
            return self.compatibility_trainer(folder, logs=logs)
        self._say(f"Teachers: {teaching.why}")
        return trainer

    def choice_log(self, name: str) -> ChoiceLog:
        """A version's answers to the rows that are trained on and selected by, for rows in v2's words."""
        answers: list[Prediction] = []
        for part in sides.TRAINED_PARTS:
            if items := getattr(self.sides[NEW].splits, part):
                file = self.folder / f"{part}_{PREDICTIONS}" / f"{name}.jsonl"
                answers += sides.as_asked(self._answered(name, part, file), items)
        return ChoiceLog(answers)

    def compatibility_trainer(
        self, folder: Path, *, logs: Mapping[str, ChoiceLog] | None = None, **changed: Any
    ) -> MuscleTrainer:
        """The trainer of the compatibility adapter, in a folder, with training arguments ``changed``.

        Precision and quantization of v1's base follow v2's. Versions that are known by ``logs`` are not loaded.
        """
        old, logs = self.side(OLD), logs or {}
        training = {**self.training, **self.target, **changed}
        arguments = steps.training_arguments(self.settings.config_class, training, folder)
        model = self._student()
        words = sides.words_of_old(self.sides[OLD], self.sides[NEW], self.data)
        where: dict[str, Any] = {}
        if OLD in logs:
            words = None
        elif old.server is not None:
            where = {name: getattr(old.server, name) for name in ("model", "top_k", "concurrency")}
            where["api_key"] = os.environ.get(old.server.api_key_env)
        else:
            where = {"revision": old.adapter_revision, "base_model": old.base, "base_revision": old.revision}
            where |= {key: self._how[key] for key in self._how if key == "attn_implementation"}
        return cast("type[MuscleTrainer]", steps.trainer_class(arguments))(
            model,
            arguments,
            old_model=logs.get(OLD, old.adapter if old.server is None else old.server.url),
            old_model_kwargs=where,
            new_model=logs.get(NEW),
            old_processing_class=self.sides[OLD].tokenizer,
            old_formatting_func=words,
            transfer_dataset=self.transfer,
            **self.data.for_trainer(arguments),
        )

    @property
    def transfer(self) -> TransferPrompts | None:
        """The prompts without labels, each side's in its words; None where there are none."""
        transfer, old, new = self.settings.data.transfer, self.sides[OLD], self.sides[NEW]
        if not new.splits.transfer or transfer is None:
            return None
        there = {OLD: (old, transfer.servers.old), NEW: (new, transfer.servers.new)}
        return TransferPrompts(
            new.splits.transfer,
            transfer.answers,
            self.task,
            checker=self._checker,
            end_answers=self.settings.data.end_answers,
            batch_size=self.settings.eval_batch_size,
            old_prompts=None if old.splits == new.splits else old.splits.transfer,
            old_task=old.task,
            servers={role: server.server(side.tokenizer) for role, (side, server) in there.items() if server},
        )

    # ---- What transfer rows follow ----

    @cached_property
    def target(self) -> dict[str, str]:
        """``mask`` and ``transfer_mask``, where ``data.transfer.target`` has them chosen; else nothing.

        The figures of all targets are written to ``targets.json``.
        """
        if not self._chooses_target:
            return {}
        folder = self.folder / f"validation_{PREDICTIONS}"
        sources = [source_of(self._answered(name, "validation", folder / f"{name}.jsonl"), name) for name in VERSIONS]
        (found,) = measure_targets(*sources)
        mask = found.chosen.mask
        rates = f"{100 * found.chosen.accuracy.value:.1f} % right, {100 * found.chosen.nfr.value:.1f} % negative flips"
        self._say(f"Target: {mask} ({rates} on {found.items} validation rows, if both versions were asked)")
        if mask == "always_new":
            self._say("No share of v1 is worth it on these rows: what is trained stays as v2 is (see targets.json)")
        if self._process.is_main_process:
            write_json(self.folder / TARGETS_FILE, found.to_dict())
        return {"mask": mask, "transfer_mask": mask}

    # ---- Evaluation ----

    def evaluate(self) -> Result:
        """The answers of every model to the test items, and what they say of the update."""
        if self.task is None:
            raise MuscleError("nothing can be evaluated without a task; set task, and data.test_source")
        for name in self.models:
            self.adapter(name)
        predictions = {name: self.answers(name) for name in self.models}
        result = Result.of(predictions)
        if self._process.is_main_process:
            content = {"settings": self.settings.to_dict(), "result": result.to_dict()}
            write_json(self.folder / RESULT_FILE, content)
        return result

    def answers(self, name: str) -> list[Prediction]:
        """What a model of the run answers to the test items; asked once."""
        return self._answered(name, "test", self.folder / PREDICTIONS / f"{name}.jsonl")

    def _answered(self, name: str, kind: str, file: Path) -> list[Prediction]:
        settings, asked = self.settings, self.sides.get(name, self.sides[NEW])
        side, task, items = self.side(name), cast("Task", asked.task), getattr(asked.splits, kind)
        how = (settings.dtype, settings.quantization, settings.attention, settings.eval_batch_size)
        key = fingerprint(weights_key(side), task.rules(), items, how)
        note = file.with_suffix(".key")
        if file.is_file() and note.is_file() and note.read_bytes() == key.encode():
            return read_predictions(file)
        self._say(f"{len(items)} {kind} items: {VERSIONS.get(name, name)}")
        steps.free_memory()
        data = {"task": task.name, **(self.test_data if kind == "test" else {})}
        progress = not self.training["disable_tqdm"]
        if side.answers:
            answers = sides.recorded_answers(side.answers, task, items)
        elif side.server is not None:
            server, kept = side.server.server(asked.tokenizer), file.with_suffix(".partial")
            answers = evaluate_task_on_server(server, task, items, partial=kept, progress=progress)
        else:
            size = settings.eval_batch_size
            answers = steps.answer(side, task, items, how=self._how, batch_size=size, data=data, progress=progress)
        answers = sides.as_asked(answers, getattr(self.splits, kind))
        self._process.wait_for_everyone()  # none shall still look for the file
        if self._process.is_main_process:
            note.unlink(missing_ok=True)
            write_predictions(file, answers)
            write_text(note, key)
        self._process.wait_for_everyone()
        return answers

    # ---- Each step once ----

    def _key(self, *ingredients: Any, data: TrainingData | None = None) -> str:
        settings = self.settings
        how = (settings.dtype, settings.quantization, settings.attention, settings.trainer)
        # What a stream is read from is in the settings alone.
        rows = ((data or self.data).identity, settings.data if settings.data.streaming else None)
        return fingerprint(rows, settings.lora, how, ingredients)
