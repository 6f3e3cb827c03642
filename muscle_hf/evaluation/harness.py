"""Tasks of lm-evaluation-harness on old, new and compatibility models in memory, adapters switched on one base."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from muscle_hf.compat.peft import active_adapter, check_generates
from muscle_hf.errors import MissingDependencyError, MuscleError
from muscle_hf.evaluation.loading import load_for_evaluation, tokenizer_of
from muscle_hf.evaluation.state import untouched
from muscle_hf.evaluation.tasks import Task
from muscle_hf.files import StrPath
from muscle_hf.teachers.adapter_files import put_beside
from muscle_hf.teachers.adapters import frozen_view
from muscle_hf.teachers.loading import FETCH_KEYS, find_adapter
from muscle_hf.teachers.sharing import adds_only
from muscle_hf.user_code import about_to_run


@dataclass(frozen=True)
class HarnessModel:
    """One side of the comparison: a model in memory, which several sides may share, its tokenizer, and the adapter of
    a PEFT model that answers (None: the model as it is)."""

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    adapter: str | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make this side the one that answers; afterwards the model is as it was."""
        own = nullcontext() if self.adapter is None else frozen_view(cast("PeftModel", self.model), self.adapter)
        with untouched(self.model), own:
            yield


def load_sides(names: Mapping[str, StrPath], **arguments: Any) -> dict[str, HarnessModel]:
    """Load several task models, side (``old``, ``new``, ``compat``, ...) -> folder or Hub id of an adapter or a model;
    adapters of the same base share one copy of it. Arguments are those of
    :func:`~muscle_hf.evaluation.loading.load_for_evaluation`."""
    anything = Task("harness", "generation", cast("Any", lambda row, index: row), metric="exact_match")
    fetch = {key: arguments[key] for key in FETCH_KEYS if key in arguments}
    sides: dict[str, HarnessModel] = {}
    shared: dict[tuple[str, str | None], Any] = {}
    for side, name in names.items():
        found = find_adapter(name, arguments.get("revision"), fetch)
        base: Any = (found.config.base_model_name_or_path, found.config.revision) if found is not None else None
        if found is not None and base in shared and put_beside(shared[base], found.folder, found.config, side):
            sides[side] = HarnessModel(shared[base], tokenizer_of(found.folder, base[0], base[1], fetch), adapter=side)
            continue
        model, tokenizer = load_for_evaluation(name, anything, **arguments)
        if base is not None:
            shared.setdefault(base, model)
        # Others may join a plain LoRA on its base later.
        joined = found is not None and adds_only(found.config)
        own = active_adapter(cast("PeftModel", model)) if joined else None
        sides[side] = HarnessModel(model, tokenizer, adapter=own)
    return sides


def run_harness(
    sides: Mapping[str, HarnessModel],
    tasks: Sequence[str | Mapping[str, Any]],
    *,
    output: StrPath | None = None,
    include_path: StrPath | None = None,
    batch_size: int | str = 8,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Run lm-evaluation-harness on each side, one after the other.

    Args:
        sides: Name of a side -> what answers (:func:`load_sides`, or models that are in memory already).
        tasks: Names of the harness's tasks, or their configurations as mappings.
        output: Folder for the harness's own logs, ``{output}/{side}/samples_{task}_{time}.jsonl`` and the results;
            ``muscle-hf compare {output}/old {output}/new`` reads them.
        include_path: Folder with further task files.
        batch_size: Sequences in a forward pass, or ``auto``.
        **options: Further arguments of ``lm_eval.simple_evaluate`` (``num_fewshot``, ``limit``, ``gen_kwargs``,
            ``apply_chat_template``, ...).

    Returns:
        Side -> the harness's results, samples included.

    Raises:
        MissingDependencyError: lm_eval is not installed.
        MuscleError: There is no such task, or the logs could not be written.
    """
    try:
        import lm_eval
        from lm_eval.loggers import EvaluationTracker
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingDependencyError("lm_eval", "harness", "running tasks of lm-evaluation-harness") from error
    folder = os.fspath(include_path) if include_path is not None else None
    if folder is not None:
        about_to_run(f"the Python functions that the task files in {Path(folder).resolve()} may name")
    names = {name for name in tasks if isinstance(name, str)}
    # Reading the thousands of tasks that come with the harness takes a while; own ones rarely need them.
    manager = TaskManager(include_path=folder, include_defaults=False)
    if not names <= set(manager.all_tasks):
        manager = TaskManager(include_path=folder)
    unknown = sorted(names - set(manager.all_tasks))
    if unknown:
        raise MuscleError(f"lm-evaluation-harness has no task {', '.join(unknown)}; `lm_eval ls tasks` lists them")
    found: dict[str, dict[str, Any]] = {}
    for side, asked in sides.items():
        tracker = EvaluationTracker(output_path=os.fspath(output)) if output is not None else None
        with asked.active():
            check_generates(asked.model)
            results = cast("Any", lm_eval.simple_evaluate)(
                model=cast("Any", HFLM)(pretrained=asked.model, tokenizer=asked.tokenizer, batch_size=batch_size),
                tasks=[name if isinstance(name, str) else dict(name) for name in tasks],
                task_manager=manager,
                evaluation_tracker=tracker,
                log_samples=True,
                **options,
            )
        found[side] = results
        if tracker is not None and output is not None:
            _save(tracker, side, Path(output), results)
    return found


def _save(tracker: Any, side: str, output: Path, results: Mapping[str, Any]) -> None:
    tracker.general_config_tracker.model_name_sanitized = side
    samples = results["samples"]
    tracker.save_results_aggregated(results={k: v for k, v in results.items() if k != "samples"}, samples=samples)
    for task in results["configs"]:
        # The harness rewrites what it saves; the caller's results stay as they are.
        tracker.save_results_samples(task_name=task, samples=[dict(sample) for sample in samples[task]])
        # It only warns when writing fails.
        if not list((output / side).glob(f"samples_{task}_*.jsonl")):
            raise MuscleError(f"lm-evaluation-harness could not write its samples to {output / side}")
