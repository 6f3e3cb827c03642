"""The whole comparison: read, join, analyse, decide."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from muscle_hf.compare.analyse import AnalysisOptions, TaskAnalysis, correct_tasks, count_repeats
from muscle_hf.compare.document import Document, Model, NoiseFloor, Role, TaskResult
from muscle_hf.compare.flips import list_flips
from muscle_hf.compare.gate import Budget, check_gate
from muscle_hf.compare.inheritance import audit
from muscle_hf.compare.join import Joined, Missing, join
from muscle_hf.compare.roles import ReadOptions
from muscle_hf.compare.slices import find_slices
from muscle_hf.compare.sources import UNNAMED, Source, as_source
from muscle_hf.compare.totals import totals_of
from muscle_hf.errors import MuscleError
from muscle_hf.words import did_you_mean


def default_labels(paths: Sequence[str]) -> list[str]:
    """``old``, ``new``, then ``compat`` or, for several, the names of their files or folders."""
    if len(paths) <= 3:
        return ["old", "new", "compat"][: len(paths)]
    labels = ["old", "new"]
    for path in paths[2:]:
        stem = Path(path).stem or "compat"
        taken = sum(label == stem or label.startswith(f"{stem}-") for label in labels)
        labels.append(f"{stem}-{taken + 1}" if stem in labels else stem)
    return labels


def compare(
    old: Any,
    new: Any,
    *compat: Any,
    labels: Sequence[str] | None = None,
    read: ReadOptions | None = None,
    analysis: AnalysisOptions | None = None,
    missing: Missing = "error",
    ignore_prompts: bool = False,
    budget: Budget | None = None,
    candidates: Sequence[str] | None = None,
    controls: Sequence[str] = (),
    noise: Sequence[NoiseFloor] = (),
) -> Document:
    """Compares the answers of an old model with those of updated ones.

    Args:
        old: Predictions of the old model: a path (:func:`~muscle_hf.compare.sources.read_source`), a table in memory
            (:func:`~muscle_hf.compare.sources.source_of`: a data frame, a data set, a list of dictionaries), or what
            was read.
        new: Predictions of the plain update.
        *compat: Predictions of compatibility models, if any.
        labels: Short unique names of all models; ``old``, ``new``, ``compat`` by default.
        read: How to read the logs.
        analysis: Level, slices, clusters, and so on.
        missing: What becomes of items that a model has no judged answer to (:func:`~muscle_hf.compare.join.join`).
        ignore_prompts: Compare answers to the same items even if the models saw other prompts.
        budget: Limits of the gate.
        candidates: Labels (or paths) of the models that would ship, which the gate judges: by default the
            compatibility models, or the new one if there are none.
        controls: Labels (or paths) of models that are shown beside the others and never judged, such as v2's adapter
            trained on without the old model.
        noise: Noise floors to show (:func:`~muscle_hf.compare.noise.measure_noise`).

    Returns:
        The comparison as plain data.

    Raises:
        MuscleError: The input cannot be compared; the message says why and what to do.
    """
    from muscle_hf import __version__

    read, analysis = read or ReadOptions(), analysis or AnalysisOptions()
    given = [old, new, *compat]
    names, shipped, controls = _cast(given, labels, candidates or (), controls)
    wanted = [*(analysis.slices or ()), *([analysis.cluster] if analysis.cluster else []), *read.wanted]
    read = dataclasses.replace(read, wanted=wanted)
    sources = {name: as_source(entry, read.of(name, names)) for name, entry in zip(names, given, strict=True)}
    joined, warnings = join(sources, missing=missing, ignore_prompts=ignore_prompts, wanted=wanted)
    warnings += _suspicions(sources, joined)
    if doubt := _same_log(given, names, read):
        joined = [dataclasses.replace(task, doubt=doubt) for task in joined]
    joined = [count_repeats(task, analysis.repeats) for task in joined]
    _check_cluster(joined, analysis.cluster)
    floors, budget, notes = _measured_before(noise, budget or Budget(), joined)
    roles: list[Role] = ["old", "new", *("control" if name in controls else "compat" for name in names[2:])]
    models = [
        Model(name, role, source.path, source.format, source.origins)
        for role, (name, source) in zip(roles, sources.items(), strict=True)
    ]
    tasks = _analyse(joined, models, analysis, floors)
    totals, measured = totals_of(joined, tasks, analysis), list(floors.values())
    asked = {"missing": missing, "candidates": shipped, "controls": controls}
    return Document(
        models=models,
        tasks=tasks,
        totals=totals,
        gate=check_gate(joined, tasks, shipped, budget, analysis, totals=totals, noise=measured),
        noise=measured,
        warnings=warnings + notes,
        options=dataclasses.asdict(analysis) | asked,
        meta={"version": __version__},
    )


def _cast(
    given: Sequence[Any], labels: Sequence[str] | None, candidates: Sequence[str], controls: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    """The models' labels, which of them would ship, and which are controls."""
    paths = [_path(entry) for entry in given]
    names = default_labels(paths) if labels is None else list(labels)
    if len(names) != len(given) or len(set(names)) != len(given) or not all(names):
        raise MuscleError(f"{len(given)} models need {len(given)} different labels, got {', '.join(names) or 'none'}")
    # A default label is not what somebody typed who named the file.
    places = {os.path.realpath(path): name for path, name in zip(paths, names, strict=True)}

    def chosen(what: str, wanted: Sequence[str]) -> list[str]:
        found = [name if name in names else places.get(os.path.realpath(name), name) for name in wanted]
        if unknown := next((label for label in found if label not in names[1:]), None):
            raise MuscleError(f"there is no updated model {unknown!r}; {what} can be {', '.join(names[1:])}")
        return found

    shipped, controls = chosen("candidates", candidates), chosen("controls", controls)
    if both := [label for label in shipped if label in controls]:
        raise MuscleError(f"{both[0]!r} is a control, which is never judged; it cannot be a candidate")
    if set(names[1:]) <= set(controls):
        raise MuscleError("every updated model is a control, so there is nothing to judge; name the controls only")
    return names, shipped or [name for name in names[2:] if name not in controls] or names[1:2], controls


def _path(entry: Any) -> str:
    return entry.path if isinstance(entry, Source) else str(entry) if isinstance(entry, (str, os.PathLike)) else ""


def _suspicions(sources: Mapping[str, Source], joined: Sequence[Joined]) -> list[str]:
    """What speaks against these being the logs of one model each."""
    old, *others = sources
    mixed = [
        f"the answers of {name} were given by more than one model"
        for name, source in sources.items()
        if len({json.dumps({**(origin or {}), "data": None}, sort_keys=True) for origin in source.origins}) > 1
    ]
    return mixed + [
        f"every answer of {name} is that of {old}: are these the logs of two models?"
        for name in others
        if all(_alike(task.answers[old], task.answers[name]) for task in joined)
        and all(_alike(task.values[old], task.values[name]) for task in joined)
    ]


def _alike(one: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    return one is not None and other is not None and bool((one == other).all())


def _same_log(given: Sequence[Any], names: Sequence[str], read: ReadOptions) -> str:
    """Whether an updated model is read from the old one's file, in the same way."""
    logs = [
        (os.path.realpath(entry), read.of(name, names)) if isinstance(entry, (str, os.PathLike)) else name
        for entry, name in zip(given, names, strict=True)
    ]
    again = [name for name, log in zip(names[1:], logs[1:], strict=True) if log == logs[0]]
    return f"{' and '.join(again)} and {names[0]} are the same log, so nothing is compared" if again else ""


def _measured_before(
    noise: Sequence[NoiseFloor], budget: Budget, joined: Sequence[Joined]
) -> tuple[dict[str, NoiseFloor], Budget, list[str]]:
    """The noise floors of the tasks, the budget with their baselines, and what of both is missing or left over."""
    compared = {task.task for task in joined}
    baseline = _of_tasks(budget.baseline, joined)
    floors = _of_tasks({floor.task: floor for floor in noise}, joined)
    notes = [
        f"no {what} was measured for {', '.join(sorted(compared - known.keys()))}"
        for what, known in (("noise floor", floors), ("baseline", baseline))
        if known and compared - known.keys()
    ]
    if lost := sorted(baseline.keys() - compared):
        notes.append(f"the baseline has tasks that were not compared: {', '.join(lost)}")
    floors = {task: dataclasses.replace(f, task=task) for task, f in floors.items() if task in compared}
    return floors, dataclasses.replace(budget, baseline=baseline), notes


def _of_tasks(earlier: Mapping[str, Any], joined: Sequence[Joined]) -> dict[str, Any]:
    """What was measured earlier, by task; of a single one, files may have given the name then or now alone."""
    if len(earlier) == 1 == len(joined) and UNNAMED in (*earlier, joined[0].task):
        return {joined[0].task: next(iter(earlier.values()))}
    return dict(earlier)


def _check_cluster(joined: Sequence[Joined], cluster: str | None) -> None:
    for task in joined if cluster is not None else ():
        if cluster not in task.columns:
            hint = did_you_mean(cluster, task.columns)
            raise MuscleError(f"task {task.task!r} has no column {cluster!r} that names clusters; {hint}")
        if (lacking := task.columns[cluster][0] < 0).any():
            first = task.ids[int(lacking.argmax())]
            raise MuscleError(f"task {task.task!r}: item {first!r} has no {cluster!r}; every item needs a source")


def _analyse(
    joined: Sequence[Joined], models: Sequence[Model], options: AnalysisOptions, floors: Mapping[str, NoiseFloor]
) -> list[TaskResult]:
    results = correct_tasks([TaskAnalysis(task, models, options).result() for task in joined], options.level)
    finished = []
    for task, result in zip(joined, results, strict=True):
        flips, total = list_flips(task, options)
        noisy = set(floors[task.task].flaky) if task.task in floors else set()
        flips = [dataclasses.replace(flip, noise=True) if flip.id in noisy else flip for flip in flips]
        updates = [
            dataclasses.replace(
                update,
                slices=find_slices(task, update.label, options),
                inheritance=None if update.role == "new" else audit(task, update.label, options),
            )
            for update in result.updates
        ]
        finished.append(dataclasses.replace(result, updates=updates, flips=flips, flips_total=total))
    return finished
