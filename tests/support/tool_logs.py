"""The logs in ``tests/data/tools``, which the tools made themselves (``tests/data/README.md``).

Each is of four items: the old model has all but the third right, the new one all but the second.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import paths

TOOLS = paths.DATA / "tools"
RIGHT = {"old": [True, True, False, True], "new": [True, False, True, True]}
# Log -> the kept file of a side, and what the tool calls such a file.
LOGS = {
    "openai-evals": ("openai-evals-match-{}.jsonl", "events.jsonl"),
    "openai-evals graded": ("openai-evals-graded-{}.jsonl", "graded.jsonl"),
    "helm": ("helm-per_instance_stats-{}.json.gz", "per_instance_stats.json.gz"),
    "helm display": ("helm-display_predictions-{}.json.gz", "display_predictions.json.gz"),
    "opencompass": ("opencompass/{}/acc.json", "acc.json"),
    "opencompass list": ("opencompass/{}/gsm.json", "gsm8k.json"),
    "opencompass ppl": ("opencompass/{}/ppl.json", "ppl.json"),
    "evalplus": ("evalplus-{}.json", "samples_eval_results.json"),
    "swe-bench": ("swe-bench-{}.json", "model.run.json"),
    "alpaca_eval": ("alpaca-eval-{}.json", "annotations.json"),
    "mt-bench": ("mt-bench-{}.jsonl", "gpt-4_single.jsonl"),
    "json": ("mlflow-{}.json", "eval_results_table.json"),
    "mlflow": ("mlflow-genai-{}.json", "genai.json"),
    "langsmith": ("langsmith-{}.csv", "experiment.csv"),
    "promptfoo": ("promptfoo-{}.json", "promptfoo.json"),
    "deepeval": ("deepeval-{}.json", "deepeval.json"),
    "inspect_ai": ("inspect-{}.json.gz", "inspect.json.gz"),
    "lighteval": ("lighteval/{}", ""),
    "lm-eval": ("lm-eval-{}.jsonl", "samples_sums.jsonl"),
}
# Those in which the new model fails at the fourth item.
FAILING = {"langsmith", "mlflow", "promptfoo"}


def kept(log: str, side: str) -> Path:
    """A side's file."""
    return TOOLS / LOGS[log][0].format(side)


def content(log: str, side: str) -> Any:
    """The rows of a file of lines, or a document."""
    path = kept(log, side)
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def answers(side: str) -> list[tuple[int, str, str, bool]]:
    """Number, answer, target, and whether it is right, of each item."""
    return [(i, str(2 * i) if ok else "?", str(2 * i), ok) for i, ok in enumerate(RIGHT[side], start=1)]


def write_log(folder: Path, content: Any, name: str) -> str:
    """Writes rows or a document as the file that its name says."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = name.endswith(".jsonl")
    text = "".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content, indent=2)
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)
