"""Comparing an old and a new model from their predictions, whoever produced them.

    from muscle_hf.compare import compare

    document = compare("runs/old.jsonl", "runs/new.jsonl", "runs/muscle.jsonl")
    document.tasks[0].updates[0].rates["nfr"]
    document.to_json()

:func:`compare` reads and joins logs of lm-evaluation-harness, lighteval, our own prediction files or plain files and
returns a :class:`~muscle_hf.compare.document.Document`; :func:`measure_noise` compares runs of one model;
:func:`measure_targets` tries what a compatibility adapter could follow on rows without labels.
"""

from muscle_hf.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "AnalysisOptions": "analyse",
        "Budget": "gate",
        "Document": "document",
        "ReadOptions": "roles",
        "Source": "sources",
        "compare": "comparison",
        "measure_noise": "noise",
        "measure_targets": "targets",
        "read_baseline": "gate",
        "read_budget": "gate",
        "read_source": "sources",
        "source_of": "sources",
    },
)
