"""Comparing an old and a new model from their predictions, whoever produced them.

    from muscle_hf.compare import compare

    document = compare("runs/old.jsonl", "runs/new.jsonl", "runs/muscle.jsonl")
    document.tasks[0].updates[0].rates["nfr"]
    document.to_json()

:func:`compare` reads and joins logs of lm-evaluation-harness, lighteval, our own prediction files or plain files and
returns a :class:`~muscle_hf.compare.document.Document`; :func:`measure_noise` compares runs of one model;
:func:`measure_targets` tries what a compatibility adapter could follow on rows without labels.
"""

from muscle_hf.compare.analyse import AnalysisOptions
from muscle_hf.compare.comparison import compare
from muscle_hf.compare.document import Document
from muscle_hf.compare.gate import Budget, read_baseline, read_budget
from muscle_hf.compare.noise import measure_noise
from muscle_hf.compare.roles import ReadOptions
from muscle_hf.compare.sources import Source, read_source, source_of
from muscle_hf.compare.targets import measure_targets

__all__ = [
    "AnalysisOptions",
    "Budget",
    "Document",
    "ReadOptions",
    "Source",
    "compare",
    "measure_noise",
    "measure_targets",
    "read_baseline",
    "read_budget",
    "read_source",
    "source_of",
]
