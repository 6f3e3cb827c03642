"""Whether the answers of a comparison were given by the models that an adapter's provenance names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muscle_hf.errors import MismatchError, MuscleError
from muscle_hf.record import same_adapter, same_base


def check_origins(comparison: Mapping[str, Any], provenance: Mapping[str, Any]) -> list[str]:
    """Hold the models that gave the answers of a ``trimmed_comparison`` against an adapter's provenance: another base
    or adapter is a :class:`MismatchError` that names the model and both hashes.

    Gives the labels of models whose answers do not say, wholly or in part, what gave them, or not so that it can be
    compared (a base in another precision).
    """
    adapter = {"sha256": provenance.get("adapter_sha256"), "file_sha256": provenance.get("adapter_file_sha256")}
    expected = {
        "old": provenance["old"],
        "new": provenance["new"],
        "compat": {"base": provenance["new"]["base"], "adapter": adapter},
    }
    unverified = []
    try:
        for model in comparison["models"]:
            recorded = expected[model["role"]]
            verdicts = [_verdict(model, recorded, origin) for origin in model.get("origins") or [None]]
            if not all(verdicts):
                unverified.append(str(model["label"]))
    except (KeyError, TypeError, AttributeError) as error:  # a fetched file may hold anything
        raise MuscleError(f"the comparison is damaged ({type(error).__name__}: {error})") from error
    return unverified


def _verdict(model: Mapping[str, Any], recorded: Mapping[str, Any], origin: Any) -> bool | None:
    if not isinstance(origin, Mapping):
        return None
    found = {part: origin.get(part) for part in ("base", "adapter")}
    if not isinstance(found["base"], Mapping) or not isinstance(found["adapter"] or {}, Mapping):
        return None
    verdicts = {"base": same_base(recorded["base"], found["base"])}
    if model["role"] == "compat" or bool(recorded["adapter"]) == bool(found["adapter"]):
        verdicts["adapter"] = same_adapter(recorded["adapter"], found["adapter"])
    else:
        # A task model may have been merged for one of the two: its base is another one then, and neither can be told.
        verdicts = {"adapter": False if verdicts["base"] else None}
    for part, verdict in verdicts.items():
        if verdict is False:
            raise MismatchError(
                f"the answers of {model['label']!r} in the comparison were given by another {part} than the adapter's "
                f"provenance records: recorded {_named(recorded[part])}, found {_named(found[part])}. Compare the "
                "answers of the models that it was trained from, and its own"
            )
    return None if None in verdicts.values() else True


def _named(part: Mapping[str, Any] | None) -> str:
    if not part:
        return "none"
    return f"{part.get('name') or 'this one'} ({part.get('sha256') or part.get('file_sha256') or 'without a hash'})"
