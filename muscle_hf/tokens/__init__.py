"""v1 and v2 with different tokenizers: what their tokens have in common, and v1's targets in v2's tokens."""

from muscle_hf.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ByteVocabulary": "vocabulary",
        "Vocabularies": "levels",
        "compare_vocabularies": "levels",
    },
)
