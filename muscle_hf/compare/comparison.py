"""The whole comparison: read, join, analyse, decide."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muscle_hf.compare.analyse import AnalysisOptions, TaskAnalysis, correct_tasks
from muscle_hf.compare.document import Document, Model, NoiseFloor, Role, TaskResult
from muscle_hf.compare.flips import list_flips
from muscle_hf.compare.gate import Budget, check_gate
from muscle_hf.compare.inheritance import audit
from muscle_hf.compare.join import Joined, Missing, join
from muscle_hf.compare.repeats import check_repeats, count_repeats
from muscle_hf.compare.roles import ReadOptions
from muscle_hf.compare.slices import find_slices
from muscle_hf.compare.sources import UNNAMED, Source, as_source
from muscle_hf.compare.totals import groups, total_of
from muscle_hf.errors import MuscleError


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

    given = [old, new, *compat]
    read, analysis = read or ReadOptions(), analysis or AnalysisOptions()
    check_options(analysis)
    names = list(labels) if labels is not None else default_labels([_path(entry) for entry in given])
    # A default label is not what somebody typed who named the file.
    places = {os.path.realpath(_path(entry)): name for entry, name in zip(given, names, strict=False)}
    controls = [name if name in names else places.get(os.path.realpath(name), name) for name in controls]
    candidates = [name if name in names else places.get(os.path.realpath(name), name) for name in candidates or ()]
    _check_labels(names, len(given), candidates, controls)
    wanted = [*(analysis.slices or ()), *([analysis.cluster] if analysis.cluster else []), *read.wanted]
    read = dataclasses.replace(read, wanted=wanted)
    sources = {name: as_source(entry, read.of(name, names)) for name, entry in zip(names, given, strict=True)}
    joined, warnings = join(sources, missing=missing, ignore_prompts=ignore_prompts, wanted=wanted)
    models = [
        Model(name, "control" if name in controls and i > 1 else _role(i), source.path, source.format, source.origins)
        for i, (name, source) in enumerate(sources.items())
    ]
    warnings += [
        f"the answers of {model.label} were given by more than one model"
        for model in models
        if len({json.dumps({**(origin or {}), "data": None}, sort_keys=True) for origin in model.origins}) > 1
    ]
    warnings += [
        f"every answer of {name} is that of {names[0]}: are these the logs of two models?"
        for name in names[1:]
        if all(_alike(task, name) for task in joined)
    ]
    joined = [count_repeats(task, analysis.repeats) for task in joined]
    _check_cluster(joined, analysis.cluster)
    noise = [dataclasses.replace(f, task=t) for t, f in _of_tasks({f.task: f for f in noise}, joined).items()]
    budget = dataclasses.replace(budget or Budget())
    budget.baseline = _of_tasks(budget.baseline, joined)
    tasks = _analyse(joined, models, analysis, {floor.task: set(floor.flaky) for floor in noise})
    together = groups(joined)
    totals = [
        total_of(name, [joined[i] for i in places], [tasks[i] for i in places], analysis)
        for name, places in together.items()
    ]
    names_of_tasks = {task.name for task in tasks}
    floors = [floor for floor in noise if floor.task in names_of_tasks]
    missed = names_of_tasks - {floor.task for floor in noise}
    if noise and missed:
        warnings.append(f"no noise floor was measured for {', '.join(sorted(missed))}")
    shipped = list(candidates or [name for name in names[2:] if name not in controls] or names[1:2])
    gate = check_gate(joined, tasks, shipped, budget, analysis, totals=totals, noise=floors)
    return Document(
        models=models,
        tasks=tasks,
        totals=totals,
        gate=gate,
        noise=floors,
        # What is doubted stands with its task, and on top of every report.
        warnings=[text for text in warnings if not any(task.doubt and task.doubt in text for task in joined)],
        options={
            **dataclasses.asdict(analysis),
            "missing": missing,
            "candidates": shipped,
            "controls": list(controls),
        },
        meta={"version": __version__},
    )


def _path(entry: Any) -> str:
    return entry.path if isinstance(entry, Source) else str(entry) if isinstance(entry, (str, os.PathLike)) else ""


def _of_tasks(earlier: Mapping[str, Any], joined: Sequence[Joined]) -> dict[str, Any]:
    """What was measured earlier, by task; of a single one, files may have given the name then or now alone."""
    if len(earlier) == 1 == len(joined) and UNNAMED in (*earlier, joined[0].task):
        return {joined[0].task: next(iter(earlier.values()))}
    return dict(earlier)


def _alike(task: Joined, label: str) -> bool:
    old = task.labels[0]
    pairs = [(kept[old], kept[label]) for kept in (task.answers, task.values)]
    return all(a is not None and b is not None and bool((a == b).all()) for a, b in pairs)


def _role(place: int) -> Role:
    return "old" if place == 0 else "new" if place == 1 else "compat"


def check_options(analysis: AnalysisOptions) -> None:
    """Refuses levels, epsilons and numbers of flips that mean nothing.

    Raises:
        MuscleError: Says which.
    """
    if not 0.5 <= analysis.level < 1:
        raise MuscleError(f"level must lie between 0.5 and 1, for example 0.95; got {analysis.level}")
    if not 0 <= analysis.epsilon < float("inf"):
        raise MuscleError(f"epsilon must be a finite number of at least 0, got {analysis.epsilon}")
    check_repeats(analysis.repeats)
    if analysis.max_flips < 0:
        raise MuscleError(f"max_flips must be at least 0, got {analysis.max_flips}")


def _check_labels(
    labels: Sequence[str], models: int, candidates: Sequence[str] | None, controls: Sequence[str]
) -> None:
    if len(labels) != models or len(set(labels)) != models or not all(labels):
        raise MuscleError(f"{models} models need {models} different labels, got {', '.join(labels) or 'none'}")
    for what, chosen in (("candidates", candidates or ()), ("controls", controls)):
        if unknown := next((label for label in chosen if label not in labels[1:]), None):
            raise MuscleError(f"there is no updated model {unknown!r}; {what} can be {', '.join(labels[1:])}")
    both = [label for label in candidates or () if label in controls]
    if both or set(labels[1:]) <= set(controls):
        raise MuscleError(
            f"{both[0]!r} is a control, which is never judged; it cannot be a candidate"
            if both
            else "every updated model is a control, so there is nothing to judge; name the controls only"
        )


def _check_cluster(joined: Sequence[Joined], cluster: str | None) -> None:
    for task in joined if cluster is not None else ():
        if cluster in task.columns and (task.columns[cluster][0] < 0).any():
            first = task.ids[int((task.columns[cluster][0] < 0).argmax())]
            raise MuscleError(f"task {task.task!r}: item {first!r} has no {cluster!r}; every item needs a source")
        if cluster not in task.columns:
            raise MuscleError(
                f"task {task.task!r} has no column {cluster!r} that names clusters; its columns are "
                f"{', '.join(task.columns) or 'none'}"
            )


def _analyse(
    joined: Sequence[Joined], models: Sequence[Model], options: AnalysisOptions, flaky: Mapping[str, set[str]]
) -> list[TaskResult]:
    results = correct_tasks([TaskAnalysis(task, models, options).result() for task in joined], options.level)
    finished = []
    for task, result in zip(joined, results, strict=True):
        flips, total = list_flips(task, options)
        noisy = flaky.get(task.task, set())
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
