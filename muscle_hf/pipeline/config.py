"""What a run is to do, from a YAML file and the command line."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_type_hints

from muscle_hf.errors import MuscleError
from muscle_hf.pipeline.reading import build, convert, one_of, parse_overrides, put, read_yaml
from muscle_hf.words import did_you_mean

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from muscle_hf.served.server import Server
    from muscle_hf.training.config import MuscleConfig


# What a paper's table may give for a run.
FIGURES = ("v1", "v2", "muscle", "nfr", "nfr_change", "nfr_change_percent", "pfr_change", "accuracy_change")
FIGURES += ("gain_change", "loss_change")


@dataclass
class ServerSettings:
    """A model behind an OpenAI-compatible server.

    Args:
        url: Up to and with the version: ``http://localhost:8000/v1``.
        model: Its name there.
        top_k: How many of its likeliest tokens are known at each place, where it is followed.
        concurrency: Requests at a time.
        api_key_env: Environment variable with the key, which is written nowhere.
    """

    url: str
    model: str
    top_k: int = 20
    concurrency: int = 8
    api_key_env: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        from muscle_hf.served.server import check_address

        check_address(self.url)

    def server(self, tokenizer: Any = None) -> Server:
        """Where it is; its tokenizer counts the tokens of choices."""
        from muscle_hf.served.server import Server

        key = os.environ.get(self.api_key_env)
        return Server(self.url, self.model, key, concurrency=self.concurrency, tokenizer=tokenizer)


@dataclass
class ModelSettings:
    """One side of the update.

    Args:
        base: Folder or Hub id of the base model.
        revision: Its revision on the Hub.
        adapter: Folder or Hub id of its task adapter; trained first where it is missing.
        adapter_revision: Its revision on the Hub.
        tokenizer: Folder or Hub id of its tokenizer, where it is not the one saved with the base.
        task: Asks this version in words of its own: another task for the same rows, whose items have the same ids,
            right answers and number of choices as those of the run's ``task``.
        answers: Files of v1's answers to the run's rows, where nothing else is left of it, so that it has no ``base``:
            what ``muscle-hf evaluate`` wrote, or rows with ``prompt`` and ``prediction``.
        server: Where v1 is, if not here: no adapter is trained or loaded then, and ``base`` is only where its
            tokenizer and configuration are. What it says of the rows is kept in the teacher cache.
        chat_template: Its prompts are put into this chat template, each as the user's turn: a Jinja file, or the name
            of one that the tokenizer has (``default``, where it has only one).
    """

    base: str = ""
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None
    # Not in the text of which keys of finished steps are made.
    tokenizer: str | None = field(default=None, repr=False)
    task: str | None = field(default=None, repr=False)
    chat_template: str | None = field(default=None, repr=False)
    server: ServerSettings | None = field(default=None, repr=False)
    answers: list[str] | None = field(default=None, repr=False)

    @property
    def is_here(self) -> bool:
        """Whether it can be loaded."""
        return self.server is None and not self.answers


@dataclass
class SplitSettings:
    """Which rows of a data set.

    Args:
        split: Its split: train, validation, test or one of its own.
        start: The first row.
        limit: How many rows; all that follow by default.
    """

    split: str
    start: int = 0
    limit: int | None = None


@dataclass
class TransferServers:
    """Servers of models of the run, which answer in their place what is asked as text.

    Args:
        old: Of v1.
        new: Of v2 with its task adapter.
    """

    old: ServerSettings | None = None
    new: ServerSettings | None = None


@dataclass
class TransferSettings(SplitSettings):
    """Rows without labels, which the compatibility adapter is trained on beside the labelled ones.

    Args:
        split: As of :class:`SplitSettings`, with ``start`` and ``limit``.
        source: Where they are, if not where the training rows are.
        answers: Whose answers are trained at: ``old``, ``new``, ``both``, ``student``, or ``choices`` (of a task).
        servers: Where the models' answers come from, if not from the models here.
        checker: ``file.py:function`` that tells right answers, see :class:`muscle_hf.TransferPrompts`.
        target: ``chosen``: ``mask`` and ``transfer_mask`` are what :func:`muscle_hf.compare.measure_targets` chooses
            from both versions' answers to the validation rows (a task with choices).
    """

    source: str | None = None
    answers: str = "both"
    checker: str | None = None
    target: str | None = None
    servers: TransferServers = field(default_factory=TransferServers, repr=False)

    def __post_init__(self) -> None:
        one_of("data.transfer.answers", self.answers, ("old", "new", "both", "student", "choices"))
        one_of("data.transfer.target", self.target, (None, "chosen"))


@dataclass
class DataSettings:
    """The rows of a run.

    Args:
        source: File, folder or Hub id; the task's own data set by default.
        name: Configuration of a dataset on the Hub.
        revision: Of a dataset on the Hub.
        format: ``task``: rows of the task, its prompt and right answer are trained on. ``trl``: rows that TRL's
            SFTTrainer takes, told by their columns: ``text``, ``prompt`` and ``completion``, ``messages``, or
            ``input_ids``.
        streaming: Read rows while training instead of before; needs ``max_steps``.
        train: Rows to train on.
        validation: Rows to select by; without it ``validation_share`` of the training rows is held out.
        validation_share: As in A.1 of the paper.
        test: Rows of the final table, which are always the task's.
        test_source: Where they are, if not in ``source``.
        transfer: Rows without labels (of a task; their right answers are not looked at).
        end_answers: Train on an EOS after each answer of a task's rows. A base that has never seen its EOS, and whose
            output layer is frozen, cannot learn to say it: each answer would cost the same large loss for ever.
    """

    source: str | None = None
    name: str | None = None
    revision: str | None = None
    format: str = "task"
    streaming: bool = False
    train: SplitSettings = field(default_factory=lambda: SplitSettings("train"))
    validation: SplitSettings | None = None
    validation_share: float = 0.2
    test: SplitSettings = field(default_factory=lambda: SplitSettings("test"))
    test_source: str | None = None
    transfer: TransferSettings | None = None
    end_answers: bool = True

    def __post_init__(self) -> None:
        one_of("data.format", self.format, ("task", "trl"))
        if not 0 < self.validation_share < 1:
            raise MuscleError(f"data.validation_share is {self.validation_share}; it must be in (0, 1)")


@dataclass
class LoraSettings:
    """The adapters (the same for task and compatibility adapters; Table 8 of the paper).

    Args:
        r: Rank.
        alpha: Scaling is alpha / r.
        dropout: In [0, 1).
        target_modules: PEFT's name for the layers.
    """

    r: int = 128
    alpha: int = 256
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"


@dataclass(repr=False)
class RunSettings:
    """A run of ``muscle-hf train``.

    Args:
        old: v1.
        new: v2.
        output_dir: Gets the adapters, the predictions and the result.
        task: What is evaluated: a built-in task, a YAML file of one's own, or ``file.py:variable``. Without it nothing
            is, and ``data.format`` is ``trl``.
        data: The rows.
        lora: The adapters.
        trainer: ``transformers`` or ``trl``: whose trainer the adapters are trained with. The objective is the same.
        training: Any field of :class:`muscle_hf.MuscleConfig`, with ``trainer: trl`` of
            :class:`muscle_hf.MuscleSFTConfig`; task adapters and the control get the ones they know. Without
            ``teacher_cache`` the cheapest way to have both teachers is taken (null: both compute in each step).
        task_training: What differs from ``training`` for the task adapters.
        student_dropout: Of v2's adapter while it is trained on, to the compatibility adapter or the control, in
            [0, 1); its own by default.
        compatibility: Train the compatibility adapter; without it the update itself is measured.
        control: Beside the compatibility adapter, also train v2's adapter (v1's on v2's base with
            ``training.start_from: old``) on with plain cross-entropy for as many steps, to compare with; as many also
            where the compatibility adapter has transfer rows beside the labelled ones.
        max_new_tokens: Of an answer to a test item that is generated; the task's by default.
        eval_batch_size: Sequences per forward pass in the final evaluation; chosen automatically by default.
        dtype: Weights of the bases: ``auto`` (as saved), ``float32``, ``bfloat16``, ``float16``.
        quantization: Of the bases: ``nf4`` (4 bits, quantized twice, as in QLoRA) or ``int8``; none by default.
        attention: ``sdpa``, ``flash_attention_2``, ``eager``, ...; transformers' choice by default.
        card: What the model card is to say: title, summary, language, datasets, license, base_note, ...
        published: Figures of a paper that ``muscle-hf reproduce`` sets beside the measured ones, in percent and
            percentage points, and their ``source``: accuracy or mean similarity (``v1``, ``v2``, ``muscle``), ``nfr``
            of v2, and what the compatibility adapter changes (``nfr_change``, relative ``nfr_change_percent``,
            ``pfr_change``, ``accuracy_change``; of the mean gain m_g and loss m_r ``gain_change``, ``loss_change``).
    """

    old: ModelSettings
    new: ModelSettings
    output_dir: str
    task: str | None = None
    data: DataSettings = field(default_factory=DataSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    trainer: str = "transformers"
    training: dict[str, Any] = field(default_factory=dict)
    task_training: dict[str, Any] = field(default_factory=dict)
    student_dropout: float | None = None
    compatibility: bool = True
    control: bool = True
    max_new_tokens: int | None = None
    eval_batch_size: int | None = None
    dtype: str = "auto"
    quantization: str | None = None
    attention: str | None = None
    card: dict[str, Any] = field(default_factory=dict)
    published: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        one_of("trainer", self.trainer, ("transformers", "trl"))
        one_of("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        one_of("quantization", self.quantization, (None, "nf4", "int8"))
        for name, dropout in (("lora.dropout", self.lora.dropout), ("student_dropout", self.student_dropout)):
            if dropout is not None and not 0 <= dropout < 1:
                raise MuscleError(f"{name} is {dropout}; it must be in [0, 1)")
        for name, number in (("lora.r", self.lora.r), ("eval_batch_size", self.eval_batch_size)):
            if number is not None and number < 1:
                raise MuscleError(f"{name} is {number}; it must be at least 1")
        self._check_training()
        self._check_sides()
        self._check_data()
        self._check_card()
        for name in self.published or {}:
            if name not in (known := ("source", *FIGURES)):
                raise MuscleError(f"unknown setting published.{name}; {did_you_mean(name, known)}")

    @property
    def config_class(self) -> type[MuscleConfig]:
        """The class of the compatibility adapter's training arguments."""
        if self.trainer == "trl":
            from muscle_hf.sft import MuscleSFTConfig

            return MuscleSFTConfig
        from muscle_hf.training.config import MuscleConfig

        return MuscleConfig

    @property
    def plain_class(self) -> type[TrainingArguments]:
        """The class of the training arguments of task adapters and control."""
        if self.trainer == "trl":
            from trl import SFTConfig

            return SFTConfig
        from transformers import TrainingArguments

        return TrainingArguments

    def _check_training(self) -> None:
        for name, section in (("training", self.training), ("task_training", self.task_training)):
            known = {setting.name: setting.default for setting in dataclasses.fields(self.config_class)}
            for key, value in section.items():
                if key.endswith("_strategy") and value is False:
                    section[key] = "no"  # which YAML reads as a boolean
                if key not in known:
                    where = f"{name}.{key} is not a field of {self.config_class.__name__}"
                    raise MuscleError(f"{where}; {did_you_mean(key, known)}")
                if type(known[key]) in (int, float) and value is not None:
                    section[key] = _number(value, f"{name}.{key}")

    def _check_sides(self) -> None:
        for name in ("server", "answers", "task"):
            if getattr(self.new, name):
                raise MuscleError(f"new.{name} has no use: v2 is trained here, and asked as task says")
        if self.old.answers:
            # Its own, if it is named, is nowhere to be had.
            self.old = dataclasses.replace(self.old, base=self.new.base, revision=self.new.revision)
        if missing := [f"{name}.base" for name in ("old", "new") if not getattr(self, name).base]:
            raise MuscleError(f"missing: {', '.join(missing)}")
        if not self.old.is_here and (self.old.adapter or self.training.get("start_from") == "old"):
            what = "old.adapter" if self.old.adapter else "training.start_from: old"
            where = "old.server" if self.old.server else "old.answers"
            raise MuscleError(f"{what} needs v1's weights, but {where} says that they are not here; leave one out")
        if self.old.task is not None and (self.task is None or self.data.format != "task"):
            raise MuscleError(
                "old.task asks about the rows of task in other words: it needs task, and data.format: task"
            )
        formats = [self.old.task, self.old.chat_template, self.new.chat_template]
        if self.data.streaming and any(formats):
            raise MuscleError("rows in words or a chat template of one version's own cannot be streamed")

    def _check_data(self) -> None:
        if self.data.format == "trl" and self.trainer != "trl":
            raise MuscleError("data.format is trl, so trainer must be trl too: TRL's trainer prepares such rows")
        if self.task is None and (self.data.format == "task" or self.data.source is None):
            raise MuscleError("missing: task (it may be left out only with data.format: trl and a data.source)")
        if self.data.transfer is not None and (self.data.format != "task" or self.data.streaming):
            raise MuscleError("data.transfer needs data.format: task, and rows that are not streamed")
        given = [name for name in ("mask", "transfer_mask") if name in self.training]
        if self.data.transfer is not None and self.data.transfer.target and given:
            raise MuscleError(
                f"data.transfer.target: chosen decides what training.{given[0]} says; leave one of the two out"
            )
        if self.data.streaming and (self.trainer != "trl" or self.training.get("max_steps", -1) < 1):
            raise MuscleError(
                "data.streaming needs trainer: trl, and training.max_steps, since a stream has no length"
            )

    def _check_card(self) -> None:
        from muscle_hf.hub.state import PUBLISHER_FIELDS, CardState

        hints = get_type_hints(CardState)
        for key, value in self.card.items():
            if key not in PUBLISHER_FIELDS:
                raise MuscleError(f"unknown setting card.{key}; {did_you_mean(key, PUBLISHER_FIELDS)}")
            convert(value, hints[key], f"card.{key}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in the YAML file, without access tokens."""
        content = dataclasses.asdict(self)
        for section in ("training", "task_training"):
            content[section] = {key: value for key, value in content[section].items() if not key.endswith("_token")}
        return content

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.to_dict()})"


def _number(value: Any, where: str) -> int | float:
    """A training argument that is a number; YAML reads ``1e-4`` as a text."""
    try:
        found = float(value) if isinstance(value, str) else value + 0
        found = int(value) if isinstance(value, str) and value.strip().isdecimal() else found
    except (ValueError, TypeError) as error:
        raise MuscleError(f"{where} is {value!r}; expected a number") from error
    if found < 1 and where.endswith(("batch_size", "gradient_accumulation_steps")):
        raise MuscleError(f"{where} is {value}; it must be at least 1")
    return found


def load_settings(file: str | os.PathLike, overrides: Sequence[str] = ()) -> RunSettings:
    """Read a run's settings from YAML and command-line words ``--name value`` or ``--name=value``. Names are dotted
    (``--data.train.limit 500``); a field of ``training`` needs no prefix (``--learning_rate 1e-4``).

    Refused: an unknown name (the nearest is suggested), a missing one, or a value of the wrong kind.
    """
    content = read_yaml(file)
    for name, value in parse_overrides(overrides):
        put(content, name if "." in name or name in get_type_hints(RunSettings) else f"training.{name}", value)
    return build(RunSettings, content)
