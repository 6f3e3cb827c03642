"""What a fleet is: one update of a base, and the tasks whose adapters it touches, from a YAML file."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from muscle_hf.compare import Budget
from muscle_hf.compare.gate import budget_of
from muscle_hf.errors import MuscleError
from muscle_hf.fleet.lock import LOCK_FILE, Lock, Version
from muscle_hf.pipeline.config import RunSettings
from muscle_hf.pipeline.reading import build, laid_over, parse_overrides, put, read_yaml
from muscle_hf.record import public_name

COLLECTION = "collections/"
# Folders beside those of the tasks: what teachers say of rows, and the logs of jobs.
OF_ALL = CACHE, SLURM = "cache", "slurm"
_NAME = re.compile(r"[\w][\w.+-]*")
_WILD = re.compile(r"[*?\[]")


@dataclass
class UpdateSettings:
    """The update.

    Args:
        old: Folder or Hub id of the old base; or the ``muscle-fleet.lock`` of the last release, whose adapters are
            then the old ones.
        new: Folder or Hub id of the new base.
        old_revision: Of the old base on the Hub.
        new_revision: Of the new base on the Hub.
    """

    old: str
    new: str
    old_revision: str | None = None
    new_revision: str | None = None

    def __str__(self) -> str:
        # A lock lies in the folder of its fleet, which is called like what it shipped.
        old = str(Path(self.old).parent) if self.old.endswith(".lock") else self.old
        return " to ".join(public_name(name) or name for name in (old, self.new))


@dataclass
class StepSettings:
    """What a step gets on a cluster.

    Args:
        gpus: GPUs, or a share of one.
        cpus: Cores.
        retries: How often a step is tried again whose machine or process died.
        slurm: Further parameters of submitit's ``AutoExecutor``: ``timeout_min``, ``slurm_partition``, ...
    """

    gpus: float = 0.0
    cpus: float = 1.0
    retries: int = 3
    slurm: dict[str, Any] = field(default_factory=dict)


@dataclass
class FleetSettings:
    """A file of ``muscle-hf fleet``.

    Args:
        update: From which base to which.
        tasks: One entry a task: ``name`` (of the task by default), ``budget``, and any setting of a run
            (:class:`~muscle_hf.pipeline.config.RunSettings`). With ``adapters``, a pattern of folders or
            ``collections/OWNER/SLUG`` of the Hub, an entry is one for each adapter of v1 that is found, in whose
            texts ``{name}`` is the adapter's name.
        output_dir: Gets a folder a task, the page and the lock; ``runs/`` and the new base's name by default.
        defaults: Under every entry.
        steps: What a step gets on a cluster.
        results: A URL of fsspec (``hf://``, ``s3://``, ...) that keeps everything besides, for machines that share no
            ``output_dir``, or whose disk does not stay.
    """

    update: UpdateSettings
    tasks: list[dict]
    output_dir: str = ""
    defaults: dict = field(default_factory=dict)
    steps: StepSettings = field(default_factory=StepSettings)
    results: str | None = None

    def __post_init__(self) -> None:
        self.output_dir = self.output_dir or f"runs/{Path(self.update.new).name}"


@dataclass
class FleetTask:
    """One task of a fleet: a run, the budget of its gate, the versions before the old one, the first one first, and
    the URL that keeps its results."""

    name: str
    settings: RunSettings
    budget: Budget
    ancestors: list[Version]
    results: str | None = None

    @property
    def folder(self) -> Path:
        """Where everything of it is."""
        return Path(self.settings.output_dir)


@dataclass
class Fleet:
    """All tasks, in the order of the file; and what is wrong with others, which are left out: by name, and what."""

    settings: FleetSettings
    tasks: list[FleetTask]
    lock: Lock | None = None
    problems: list[tuple[str, str]] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Of the page and the lock."""
        return Path(self.settings.output_dir)


def load_fleet(file: str | os.PathLike, overrides: Sequence[str] = ()) -> Fleet:
    """Read a fleet from YAML; what is wrong with single tasks is kept in :attr:`Fleet.problems`. ``overrides`` are
    command-line words ``--name value``: settings of the fleet by their dotted names (``--update.new ID``); settings of
    a run, of every task (``--data.train.limit 500``), fields of ``training`` without a prefix."""
    content = read_yaml(file)
    own, runs = get_type_hints(FleetSettings), get_type_hints(RunSettings)
    of_all: dict[str, Any] = {}
    for name, value in parse_overrides(overrides):
        first = name.partition(".")[0]
        place = name if first in own or first in runs else f"training.{name}"
        put(content if first in own else of_all, place, value)
    settings = build(FleetSettings, content)
    lock = Lock.read(settings.update.old) if settings.update.old.endswith(".lock") else None
    fleet = Fleet(settings, [], lock)
    if lock is not None and Path(settings.update.old).resolve() == (fleet.folder / LOCK_FILE).resolve():
        raise MuscleError(f"{settings.update.old} would be written over; give this fleet another output_dir")
    entries = []
    for number, entry in enumerate(settings.tasks, start=1):
        try:
            entries += _expanded(entry, settings.defaults, of_all)
        except MuscleError as error:
            fleet.problems.append((f"tasks, entry {number}", str(error)))
    named = Counter(name for name, _ in entries)
    fleet.problems += [(name, f"{n} tasks are named {name!r}; give each a name") for name, n in named.items() if n > 1]
    for name, entry in entries:
        try:
            fleet.tasks.append(_task(name, entry, fleet))
        except MuscleError as error:
            fleet.problems.append((name, str(error)))
    if not settings.tasks:
        fleet.problems.append(("tasks", "there are none"))
    return fleet


def _expanded(entry: Any, defaults: dict[str, Any], of_all: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    entry = laid_over(of_all, laid_over(_mapping(entry, "it"), defaults))
    for side in ("old", "new"):
        entry[side] = dict(_mapping(entry.get(side) or {}, side))
    pattern = str(entry.pop("adapters", ""))
    if not pattern:
        # A task of one's own is a file, which has a name as well.
        task = str(entry.get("task") or "")
        own = Path(task.partition(":")[0]).stem if ":" in task or task.endswith((".yaml", ".yml")) else task
        return [(_checked_name(str(entry.pop("name", own))), entry)]
    found = _collection(pattern) if COLLECTION in pattern else _folders(pattern)
    if not found:
        raise MuscleError(f"adapters: there is no adapter at {pattern}")
    called = str(entry.pop("name", "{name}"))
    expanded = []
    for name, adapter in found.items():
        old = {**entry["old"], "adapter": adapter}
        expanded.append((_checked_name(called.replace("{name}", name)), _filled({**entry, "old": old}, name)))
    return expanded


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise MuscleError(f"{what} must be a mapping of settings, not {value!r}")
    return value


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name in OF_ALL:
        raise MuscleError(
            f"a task needs a name of letters, digits and . _ + -, for its folder, and not {' or '.join(OF_ALL)}; "
            f"it is {name!r}"
        )
    return name


def _folders(pattern: str) -> dict[str, str]:
    """Folders of adapters by what stands for the pattern's wildcards."""
    parts = Path(pattern).parts
    wild = [place for place, part in enumerate(parts) if _WILD.search(part)] or [len(parts) - 1]
    folders = [path for path in sorted(glob.glob(pattern)) if Path(path, "adapter_config.json").is_file()]
    return {"-".join(Path(path).parts[place] for place in wild): path for path in folders}


def _collection(name: str) -> dict[str, str]:
    """The models of a collection on the Hub by their names without owners."""
    from muscle_hf.hub.errors import hub_errors
    from muscle_hf.hub.publishing import hub_api

    slug = name.partition(COLLECTION)[2]
    with hub_errors(f"reading the collection {slug}", "Nothing was run."):
        items = hub_api().get_collection(slug).items
    return {item.item_id.rpartition("/")[2]: item.item_id for item in items if item.item_type == "model"}


def _filled(value: Any, name: str) -> Any:
    if isinstance(value, str):
        return value.replace("{name}", name)
    if isinstance(value, dict):
        return {key: _filled(part, name) for key, part in value.items()}
    return [_filled(part, name) for part in value] if isinstance(value, list) else value


def _task(name: str, entry: dict[str, Any], fleet: Fleet) -> FleetTask:
    update, ancestors = fleet.settings.update, []
    old: dict[str, Any] = {"base": update.old, "revision": update.old_revision}
    given = entry["old"]
    if fleet.lock is not None and "base" not in given:
        shipped, ancestors = fleet.lock.old_side(name)
        # What the file says of v1 is still there from the first update.
        given, old = {}, asdict(shipped.side)
    budget = budget_of(entry.pop("budget", {}), "budget")
    if budget.empty:
        raise MuscleError("there is no budget, so nothing decides; set budget: {max_nfr: 5%}")
    sides = {
        "old": laid_over(given, old),
        "new": laid_over(entry["new"], {"base": update.new, "revision": update.new_revision}),
    }
    content = {"control": False, **entry, **sides, "output_dir": str(fleet.folder / name)}
    settings = build(RunSettings, content)
    if settings.task is None:
        raise MuscleError("there is no task, so nothing can be measured; set task")
    if settings.training.get("push_to_hub"):
        raise MuscleError("training.push_to_hub: a fleet publishes nothing; muscle-hf push what the lock ships")
    if not settings.compatibility:
        raise MuscleError("compatibility: false has no use in a fleet, which weighs the plain update against it")
    results = fleet.settings.results
    return FleetTask(name, settings, budget, ancestors, results and f"{results.rstrip('/')}/{name}")
