"""What a run is to do, from a YAML file and the command line."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml

from muscle_hf.errors import MuscleError

T = TypeVar("T")


@dataclass
class ModelSettings:
    """One side of the update.

    Args:
        base: Folder or Hub id of the base model.
        revision: Its revision on the Hub.
        adapter: Folder or Hub id of its task adapter; trained first where it is missing.
        adapter_revision: Its revision on the Hub.
    """

    base: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None


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
class DataSettings:
    """The rows of a run.

    Args:
        source: File, folder or Hub id; the task's own data set by default.
        train: Rows to train on.
        validation: Rows to select by; without it ``validation_share`` of the training rows is held out.
        validation_share: As in A.1 of the paper.
        test: Rows of the final table.
        end_answers: Train on an EOS after each answer. A base that has never seen its EOS, and whose output layer is
            frozen, cannot learn to say it: each answer would cost the same large loss for ever.
    """

    source: str | None = None
    train: SplitSettings = field(default_factory=lambda: SplitSettings("train"))
    validation: SplitSettings | None = None
    validation_share: float = 0.2
    test: SplitSettings = field(default_factory=lambda: SplitSettings("test"))
    end_answers: bool = True


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
        task: A built-in task, a YAML file of one's own, or ``file.py:variable``.
        old: v1.
        new: v2.
        output_dir: Gets the adapters, the predictions and the result.
        data: The rows.
        lora: The adapters.
        training: Any field of :class:`muscle_hf.MuscleConfig`; task adapters and the control get the ones they know.
        task_training: What differs from ``training`` for the task adapters.
        control: Also train v2's adapter on with plain cross-entropy for as many steps, to compare with.
        eval_batch_size: Sequences per forward pass in the final evaluation; chosen automatically by default.
        dtype: Weights of the bases: ``auto`` (as saved), ``float32``, ``bfloat16``, ``float16``.
        card: What the model card is to say: title, summary, language, datasets, license, base_note, ...
    """

    task: str
    old: ModelSettings
    new: ModelSettings
    output_dir: str
    data: DataSettings = field(default_factory=DataSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    training: dict[str, Any] = field(default_factory=dict)
    task_training: dict[str, Any] = field(default_factory=dict)
    control: bool = True
    eval_batch_size: int | None = None
    dtype: str = "auto"
    card: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from muscle_hf.config import MuscleConfig

        known = {setting.name for setting in dataclasses.fields(MuscleConfig)}
        for name, section in (("training", self.training), ("task_training", self.task_training)):
            if not isinstance(section, dict):
                raise MuscleError(f"{name} must be a mapping of training arguments, not {section!r}")
            for key in section:
                if key not in known:
                    raise MuscleError(f"{name}.{key} is not a field of MuscleConfig{_nearest(key, known)}")
                if key == "output_dir":
                    raise MuscleError(f"{name}.output_dir has no use: set the run's output_dir")
        self._check_card()
        if not 0 < self.data.validation_share < 1:
            raise MuscleError(f"data.validation_share is {self.data.validation_share}; it must be in (0, 1)")

    def _check_card(self) -> None:
        from muscle_hf.hub.state import PUBLISHER_FIELDS, CardState

        hints = get_type_hints(CardState)
        for key, value in self.card.items():
            if key not in PUBLISHER_FIELDS:
                raise MuscleError(f"unknown setting card.{key}{_nearest(key, PUBLISHER_FIELDS)}")
            _convert(value, hints[key], f"card.{key}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in the YAML file, without access tokens."""
        content = dataclasses.asdict(self)
        for section in ("training", "task_training"):
            content[section] = {key: value for key, value in content[section].items() if not key.endswith("_token")}
        return content

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.to_dict()})"


def load_settings(file: str | os.PathLike, overrides: Sequence[str] = ()) -> RunSettings:
    """Read a run's settings.

    Args:
        file: YAML.
        overrides: Command-line words ``--name value`` or ``--name=value``. Names are dotted (``--data.train.limit
            500``); a field of ``training`` needs no prefix (``--learning_rate 1e-4``).

    Raises:
        MuscleError: Not readable, an unknown name (the nearest is suggested), a missing one, or a value of the wrong
            kind.
    """
    path = Path(file)
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise MuscleError(f"{path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise MuscleError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise MuscleError(f"{path} must be a mapping of settings")
    for name, value in _parse_overrides(overrides):
        _set(content, name, value)
    return build(RunSettings, content)


def build(cls: type[T], content: Mapping[str, Any], where: str = "") -> T:
    """Make a settings dataclass of plain data, with nested ones in it.

    Raises:
        MuscleError: An unknown or missing name, or a value of the wrong kind.
    """
    if not isinstance(content, Mapping):
        raise MuscleError(f"{where.rstrip('.') or 'the settings'} must be a mapping, not {content!r}")
    hints = get_type_hints(cls)
    values = {}
    for key, value in content.items():
        if key not in hints:
            raise MuscleError(f"unknown setting {where}{key}{_nearest(str(key), hints)}")
        values[key] = _convert(value, hints[key], f"{where}{key}")
    required = [
        setting.name
        for setting in dataclasses.fields(cls)
        if setting.default is dataclasses.MISSING and setting.default_factory is dataclasses.MISSING
    ]
    missing = [f"{where}{name}" for name in required if name not in values]
    if missing:
        raise MuscleError(f"missing: {', '.join(missing)}")
    return cls(**values)


def _convert(value: Any, hint: Any, where: str) -> Any:
    kinds = get_args(hint) if get_args(hint) and not getattr(hint, "__origin__", None) else (hint,)
    nested = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
    if value is None and type(None) in kinds:
        return None
    if nested is not None:
        return build(nested, value, f"{where}.")
    plain = tuple(getattr(kind, "__origin__", kind) for kind in kinds)
    if isinstance(value, bool) and bool not in plain:
        raise MuscleError(f"{where} is {value!r}; expected {_names(plain)}")
    if isinstance(value, int) and float in plain:
        return float(value)
    if not isinstance(value, plain):
        raise MuscleError(f"{where} is {value!r}; expected {_names(plain)}")
    return value


def _names(kinds: Sequence[type]) -> str:
    return " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in kinds)


def _nearest(key: str, known: Any) -> str:
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(sorted(known))}"


def _parse_overrides(words: Sequence[str]) -> list[tuple[str, Any]]:
    pairs, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise MuscleError(f"unexpected {word!r}; settings are given as --name value")
        name, equals, text = word[2:].partition("=")
        if not equals:
            # A name without a value is a flag.
            text = "true" if not rest or rest[0].startswith("--") else rest.pop(0)
        pairs.append((name, _value(text)))
    return pairs


def _value(text: str) -> Any:
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 takes 1e-4 for text
        except ValueError:
            return text
    return value


def _set(content: dict[str, Any], name: str, value: Any) -> None:
    *sections, key = name.split(".")
    if not sections and key not in get_type_hints(RunSettings):
        sections = ["training"]
    place = content
    for section in sections:
        if place.get(section) is None:
            place[section] = {}
        place = place[section]
        if not isinstance(place, dict):
            raise MuscleError(f"--{name}: {section} is not a group of settings")
    place[key] = value
