"""Logs in the form of tools that cannot be run here, after their writers' source (``tests/data/README.md``).

Each writes four items: the old model has all but the third right, the new one all but the second.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RIGHT = {"old": [True, True, False, True], "new": [True, False, True, True]}


def answers(side: str) -> list[tuple[int, str, str, bool]]:
    """Number, answer, target, and whether it is right, of each item."""
    return [(i, str(2 * i) if ok else "?", str(2 * i), ok) for i, ok in enumerate(RIGHT[side], start=1)]


def openai_evals(side: str) -> list[dict[str, Any]]:
    """Events of ``oaieval``: the run, then samplings and matches, then the report."""
    rows: list[dict[str, Any]] = [{"spec": {"completion_fns": [side], "eval_name": "sums.dev.v0", "run_id": "1"}}]
    for i, answer, target, ok in answers(side):
        event = {"run_id": "1", "sample_id": f"sums.dev.{i}", "created_by": "", "created_at": "2026-01-01"}
        sampled = {"prompt": [{"role": "user", "content": f"{i}+{i}"}], "sampled": [answer]}
        match = {"correct": ok, "expected": target, "picked": answer if ok else None, "sampled": answer}
        rows.append({**event, "event_id": 2 * i, "type": "sampling", "data": sampled})
        rows.append({**event, "event_id": 2 * i + 1, "type": "match", "data": match})
    return [*rows, {"final_report": {"accuracy": 0.75}}]


def helm(side: str) -> list[dict[str, Any]]:
    """``per_instance_stats.json``."""
    return [
        {
            "instance_id": f"id{i}",
            "train_trial_index": 0,
            "stats": [
                {"name": {"name": "num_prompt_tokens", "split": "test"}, "count": 1, "sum": 9, "mean": 9.0},
                {"name": {"name": "exact_match", "split": "test"}, "count": 1, "sum": ok, "mean": float(ok)},
            ],
        }
        for i, _, _, ok in answers(side)
    ]


def helm_display(side: str) -> list[dict[str, Any]]:
    """``display_predictions.json``."""
    return [
        {
            "instance_id": f"id{i}",
            "predicted_text": f" {answer}",
            "train_trial_index": 0,
            "stats": {"exact_match": float(ok), "num_output_tokens": 3.0},
        }
        for i, answer, _, ok in answers(side)
    ]


def opencompass(side: str) -> dict[str, Any]:
    """``results/MODEL/TASK.json`` of a run with ``--dump-eval-details``."""
    details: dict[str, Any] = {
        str(i): {
            "prompt": [{"role": "HUMAN", "prompt": f"{i}+{i}"}],
            "origin_prediction": f"It is {answer}",
            "predictions": answer,
            "references": target,
            "correct": ok,
        }
        for i, answer, target, ok in answers(side)
    }
    return {"accuracy": 75.0, "details": {"type": "GEN", **details}}


def evalplus(side: str) -> dict[str, Any]:
    """``SAMPLES_eval_results.json``."""
    status = {True: "pass", False: "fail"}
    return {
        "date": "2026-01-01 00:00",
        "hash": "0123",
        "eval": {
            f"HumanEval/{i}": [
                {
                    "task_id": f"HumanEval/{i}",
                    "solution": f"def f(): return {answer!r}",
                    "base_status": "pass",
                    "plus_status": status[ok],
                    "base_fail_tests": [],
                    "plus_fail_tests": [],
                }
            ]
            for i, answer, _, ok in answers(side)
        },
    }


def swe_bench(side: str) -> dict[str, Any]:
    """``MODEL.RUN.json``."""
    ids = {ok: [f"django__django-{i}" for i, _, _, right in answers(side) if right is ok] for ok in (True, False)}
    return {
        "total_instances": 5,
        "submitted_instances": 4,
        "resolved_ids": ids[True],
        "unresolved_ids": ids[False] if side == "old" else [],
        "empty_patch_ids": [] if side == "old" else ids[False],
        "error_ids": [],
        "incomplete_ids": ["django__django-9"],
        "schema_version": 2,
    }


def langsmith(side: str) -> list[dict[str, Any]]:
    """``ExperimentResults.to_pandas()``."""
    return [
        {
            "inputs.question": f"{i}+{i}",
            "outputs.answer": answer,
            "error": None,
            "reference.answer": target,
            "feedback.correctness": ok,
            "execution_time": 0.1 * i,
            "example_id": f"00000000-{i}",
            "id": f"{side}-{i}",
        }
        for i, answer, target, ok in answers(side)
    ]


def mlflow(side: str) -> dict[str, Any]:
    """``eval_results_table.json``, an artifact of ``mlflow.evaluate``."""
    columns = ["inputs", "ground_truth", "outputs", "token_count"]
    return {"columns": columns, "data": [[f"{i}+{i}", target, answer, 1] for i, answer, target, _ in answers(side)]}


def alpaca_eval(side: str) -> list[dict[str, Any]]:
    """``annotations.json``: how a model fares against the baseline."""
    return [
        {
            "dataset": "helpful_base",
            "instruction": f"Add {i} to itself.",
            "output_1": target,
            "generator_1": "baseline",
            "output_2": answer,
            "generator_2": side,
            "annotator": "judge",
            "preference": 1.75 if ok else 1.25,
        }
        for i, answer, target, ok in answers(side)
    ]


def mt_bench(side: str) -> list[dict[str, Any]]:
    """``model_judgment/JUDGE_single.jsonl``: two turns each."""
    return [
        {
            "question_id": 80 + i,
            "model": side,
            "judge": ["gpt-4", f"single-v{turn}"],
            "user_prompt": f"{i}+{i}",
            "judgment": "Rating",
            "score": 9 if ok else 4,
            "turn": turn,
            "tstamp": 1.0,
        }
        for i, _, _, ok in answers(side)
        for turn in (1, 2)
    ]


def lm_eval_0_4_3(side: str) -> list[dict[str, Any]]:
    """Samples before the harness listed a row's metrics and filter."""
    return [
        {
            "doc_id": i,
            "doc": {"question": f"{i}+{i}"},
            "target": target,
            "arguments": [[f"{i}+{i}", {"until": ["\n"]}]],
            "resps": [[answer]],
            "filtered_resps": [answer],
            "doc_hash": f"{i:064x}",
            "prompt_hash": f"{i:064x}",
            "target_hash": f"{i:064x}",
            "exact_match": float(ok),
        }
        for i, answer, target, ok in answers(side)
    ]


# Format -> the rows or document, the file's name, and what one of its items is called.
LOGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "openai-evals": (openai_evals, "events.jsonl"),
    "helm": (helm, "per_instance_stats.json"),
    "helm display": (helm_display, "display_predictions.json"),
    "opencompass": (opencompass, "gsm8k.json"),
    "evalplus": (evalplus, "samples_eval_results.json"),
    "swe-bench": (swe_bench, "model.run.json"),
    "langsmith": (langsmith, "experiment.csv"),
    "alpaca_eval": (alpaca_eval, "annotations.json"),
    "mt-bench": (mt_bench, "gpt-4_single.jsonl"),
    "lm-eval": (lm_eval_0_4_3, "samples_sums.jsonl"),
}


def write_log(folder: Path, content: Any, name: str) -> str:
    """Writes rows or a document as the file that its name says."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if name.endswith(".csv"):
        import pandas

        pandas.DataFrame(content).to_csv(path)
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    else:
        path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return str(path)
