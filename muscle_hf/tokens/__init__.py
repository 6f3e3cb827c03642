"""v1 and v2 with different tokenizers: what their tokens have in common, and v1's targets in v2's tokens."""

from muscle_hf.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Aligner": "align",
        "ByteVocabulary": "vocabulary",
        "CellTable": "cells",
        "ForeignTargets": "foreign",
        "Place": "align",
        "Target": "foreign",
        "View": "align",
        "Vocabularies": "levels",
        "compare_vocabularies": "levels",
        "spread": "cells",
    },
)
