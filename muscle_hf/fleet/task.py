"""One task of a fleet: its steps, each done once, and what came out."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import yaml

from muscle_hf.compare import Document, compare, source_of
from muscle_hf.compare.document import Inheritance, TaskResult, Update, plain, with_estimates
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.predictions import Prediction
from muscle_hf.evaluation.tasks import Task
from muscle_hf.files import alone, read_object, write_json, write_text
from muscle_hf.fleet.settings import CACHE, FleetTask
from muscle_hf.metrics.intervals import Estimate
from muscle_hf.pipeline.config import ModelSettings
from muscle_hf.pipeline.run import RESULT_FILE, Run
from muscle_hf.pipeline.sides import in_own_words, side_of
from muscle_hf.pipeline.table import COMPAT, CONTROL, NEW, OLD
from muscle_hf.record import json_sha256
from muscle_hf.report import html

STATE_FILE, OUTCOME_FILE, RUN_FILE = "fleet_state.json", "fleet_outcome.json", "run.yaml"
REPORT, REPORT_FIRST = "report.html", "report_first.html"
GATE = "gate"
# What is asked at the gate, by the models of a run.
LABELS = {NEW: "plain", COMPAT: "compatible", CONTROL: "control"}
STEPS = ("old", "new", "flips", "target", "muscle", "control", GATE)
SHIP_PLAIN, SHIP_COMPATIBLE, HOLD = "ship plain", "ship compatible", "hold"
SHIPPED = {SHIP_PLAIN: NEW, SHIP_COMPATIBLE: COMPAT, HOLD: OLD}


@dataclass
class Generation:
    """Both updates against one version that users saw (``v1``, ...); fractions: negative flips of ``new``, ``muscle``
    and ``control`` against it (scores: items that got worse); ``shed``, errors of this version that the plain update
    does not make, of which the compatibility adapter makes ``returned`` again, ``inherited`` with this version's own
    wrong answer (None where answers are not known)."""

    name: str
    nfr: dict[str, Estimate]
    shed: int
    returned: Estimate
    inherited: Estimate | None


@dataclass
class Outcome:
    """What came out for one task of a fleet: the ``verdict`` (``ship plain``, ``ship compatible`` or ``hold``;
    ``undecided`` if held for want of items alone) with its ``reason``, one sentence; what an answer was judged by,
    ``correct`` or by a ``score``, on how many test items; the gate's limit on negative flips, if it has one.

    ``quality``: accuracy or mean score of ``old``, ``new``, ``muscle``, and ``control`` if there is one.
    ``generations``: the versions that users saw, the first one first, what they see now last.
    """

    task: str
    metric: str
    kind: str
    items: int
    verdict: str
    reason: str
    limit: float | None
    undecided: bool
    quality: dict[str, Estimate]
    generations: list[Generation]

    @property
    def now(self) -> Generation:
        """Against what users see now."""
        return self.generations[-1]

    @classmethod
    def of(cls, content: dict[str, Any]) -> Outcome:
        """From the file of a task that is done."""
        generations = [Generation(**with_estimates(entry)) for entry in content.pop("generations")]
        return cls(**with_estimates(content), generations=generations)


class TaskRun(Run):
    """A run that can also be asked what the versions before the old one answer, as ``before0``, ``before1``, ..."""

    ancestors: Sequence[ModelSettings] = ()
    shared_cache: Path

    @property
    def cache_folder(self) -> Path:
        """That of the fleet: tasks that share rows and an adapter of v1 share what it says of them."""
        return self.shared_cache

    def side(self, name: str) -> ModelSettings:
        """The base of a model of the run, or of a version before it, with its adapter."""
        return self.ancestors[int(name[6:])] if name.startswith("before") else super().side(name)

    def do(self, step: str, task: FleetTask) -> None:
        """Do one of :data:`STEPS` and those before it that are missing; the settings are left in a file, with which
        ``muscle-hf train`` does the same run, over several GPUs, say."""
        write_text(self.folder / RUN_FILE, yaml.safe_dump(self.settings.to_dict(), sort_keys=False))
        if step == "flips":
            for name in (OLD, NEW):
                self.answers(name)
        elif step == "target":
            _ = self.target
        elif step == GATE:
            decide(self, task)
        else:
            self.adapter(step)


def make_run(task: FleetTask, say: Callable[[str], None]) -> TaskRun:
    """The run of a task, with its rows loaded."""
    settings = replace(task.settings, training={"disable_tqdm": True, **task.settings.training})
    run = TaskRun.of(settings, say)
    run.shared_cache = task.folder.parent / CACHE
    run.ancestors = [version.side for version in task.ancestors]
    kind = cast("Task", run.task)
    for place, side in enumerate(run.ancestors):
        own = in_own_words(side, kind, run.splits, settings.data) if side.task else (kind, run.splits)
        run.sides[f"before{place}"] = side_of(side, *own)
    return run


def steps_of(task: FleetTask) -> list[str]:
    """The steps of a task, in order."""
    transfer = task.settings.data.transfer
    left_out = {
        "old": bool(task.settings.old.adapter) or not task.settings.old.is_here,
        "new": bool(task.settings.new.adapter),
        "control": not task.settings.control,
        "target": transfer is None or transfer.target is None,
    }
    return [step for step in STEPS if not left_out.get(step)]


# ---- The gate ----


def decide(run: TaskRun, task: FleetTask) -> Outcome:
    """Ask every model the test items, hold the limits against both updates, and write report and outcome.

    The plain update ships where it passes, since nothing has to be kept for it; else the compatible one where that
    passes; else nothing.
    """
    run.evaluate()
    answers = {name: run.answers(name) for name in run.models}
    versions = [run.answers(f"before{place}") for place in range(len(run.ancestors))] + [answers[OLD]]
    names = [f"v{place}" for place in range(1, len(versions) + 1)]
    documents = [_compared(rows, name, answers, task) for rows, name in zip(versions, names, strict=True)]
    now, gate = documents[-1].tasks[0], documents[-1].gate
    assert gate is not None  # every task has a budget
    passed = {name: gate.by_candidate[LABELS[name]] for name in (NEW, COMPAT)}
    shown = NEW if passed[NEW] == "pass" else COMPAT
    verdict = HOLD if passed[shown] != "pass" else SHIP_PLAIN if shown == NEW else SHIP_COMPATIBLE
    if passed[COMPAT] == "fail" and passed[NEW] == "too little data":
        shown = NEW  # which more items would let ship
    checks = [check for check in gate.checks if check.label == LABELS[shown]]
    reason = next(check.message for check in checks if check.verdict == passed[shown])
    outcome = Outcome(
        task=task.name,
        metric=now.metric,
        kind=now.kind,
        items=now.items,
        verdict=verdict,
        reason=f"{LABELS[shown]}: {reason}" if verdict == HOLD else reason,
        limit=task.budget.limit("max_nfr", now.name),
        undecided=verdict == HOLD and "too little data" in passed.values(),
        quality={OLD: now.accuracy_old, **{name: update.accuracy for name, update in _updates(now).items()}},
        generations=[_generation(name, document.tasks[0]) for name, document in zip(names, documents, strict=True)],
    )
    write_text(task.folder / REPORT, html.render(documents[-1]))
    if len(documents) > 1:
        write_text(task.folder / REPORT_FIRST, html.render(documents[0]))
    write_json(task.folder / OUTCOME_FILE, {"key": key_of(task), "outcome": plain(outcome)})
    return outcome


def _compared(
    old: Sequence[Prediction], label: str, answers: dict[str, list[Prediction]], task: FleetTask
) -> Document:
    """Every update against a version that users saw."""
    labels = {name: LABELS[name] for name in LABELS if name in answers}
    sources = [source_of(rows, label) for rows in (old, *(answers[name] for name in labels))]
    controls = [LABELS[CONTROL]] if CONTROL in answers else []
    candidates = [LABELS[NEW], LABELS[COMPAT]]
    own = {"budget": task.budget, "candidates": candidates, "controls": controls}
    return compare(*sources, labels=[label, *labels.values()], **own)


def _updates(result: TaskResult) -> dict[str, Update]:
    found = {update.label: update for update in result.updates}
    return {name: found[label] for name, label in LABELS.items() if label in found}


def _generation(name: str, result: TaskResult) -> Generation:
    updates, rate = _updates(result), "nfr" if result.kind == "correct" else "nfr_smooth"
    audit = cast("Inheritance", updates[COMPAT].inheritance)
    nfr = {model: update.rates[rate] for model, update in updates.items()}
    return Generation(name, nfr, audit.shed, audit.returned, audit.inherited)


# ---- What is done ----


def key_of(task: FleetTask) -> str:
    """Changes with all that a task is set to, but for where it is."""
    settings = {**task.settings.to_dict(), "output_dir": None}
    parts = (settings, asdict(task.budget), [asdict(version) for version in task.ancestors])
    return json_sha256(parts, default=str)


def read_state(task: FleetTask) -> dict[str, Any]:
    """Of each step that was begun: ``state`` (``running``, ``done``, ``failed``, ``stopped``), ``seconds``, ``error``,
    and which process of which machine it was.

    ``running`` is what a step is whose process was killed, too.
    """
    return _of_now(task, STATE_FILE).get("steps", {})


def outcome_of(task: FleetTask) -> Outcome | None:
    """What came out, if it did with the settings of now."""
    content = _of_now(task, OUTCOME_FILE)
    return Outcome.of(content["outcome"]) if content else None


def _of_now(task: FleetTask, name: str) -> dict[str, Any]:
    with contextlib.suppress(MuscleError):
        content = read_object(task.folder / name) if (task.folder / name).is_file() else {}
        return content if content.get("key") == key_of(task) else {}
    return {}


@contextlib.contextmanager
def noted(task: FleetTask, step: str) -> Iterator[None]:
    """Within the block a step is running, in no other process; how it ends is noted."""
    task.folder.mkdir(parents=True, exist_ok=True)
    with alone(task.folder / RESULT_FILE):
        steps = read_state(task)
        before, start = steps.get(step, {}), time.monotonic()
        who = {"pid": os.getpid(), "host": socket.gethostname()}
        noted: dict[str, Any] = {"state": "running", **who}

        def write() -> None:
            write_json(task.folder / STATE_FILE, {"key": key_of(task), "steps": {**steps, step: noted}})

        write()
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            noted = {"state": "stopped" if stopped else "failed", "error": f"{type(error).__name__}: {error}"}
            raise
        else:
            # What was done before takes no time to find done.
            seconds = max(time.monotonic() - start, before.get("seconds", 0.0))
            noted = {"state": "done", "seconds": round(seconds, 2), **who}
        finally:
            write()
