"""Which licence an adapter inherits from the bases behind it, and whether they can be had together."""

from __future__ import annotations

from dataclasses import dataclass

# Licences that ask for attribution at most: a derived work may carry another licence.
PERMISSIVE = frozenset(
    {"apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "isc", "unlicense", "cc0-1.0"}
    | {"cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "zlib"}
    | {"afl-3.0", "artistic-2.0", "bsl-1.0", "ecl-2.0", "ms-pl", "ncsa", "postgresql", "wtfpl", "odc-by"}
)


@dataclass(frozen=True)
class License:
    """The licence of an adapter: the Hub's identifier, None if it cannot be said; where it comes from, for the card;
    and whether the bases' licences bind the adapter in two ways that may exclude each other."""

    identifier: str | None
    explanation: str
    conflict: bool = False


def inherited_license(old: str | None, new: str | None, chosen: str | None = None) -> License:
    """The licence that an adapter inherits, by the identifiers of the bases' licences, None if unknown, and what the
    publisher has ``chosen``, which is kept, though a conflict is still told.

    The adapter is a change to the new base, and was trained on what the old one answers: both licences bind it. A
    permissive licence gives way to one that is not; two different ones that are not are a conflict, which only a
    person can settle.
    """
    old, new, chosen = (text.strip().lower() if text else None for text in (old, new, chosen))
    binding = sorted({text for text in (old, new) if text and text not in PERMISSIVE})
    known = f"old base: {old or 'unknown'}; new base: {new or 'unknown'}"
    both = len(binding) > 1
    conflict = both or bool(chosen and binding and chosen != binding[0])
    if both:
        explanation = (
            f"The two bases carry licences that each bind what is made from them ({known}). Whether both can be kept "
            "at once has to be read there: this adapter may be used only where it can."
        )
    elif chosen:
        also = f"; the terms of {binding[0]} bind what is made from that base too" if conflict else ""
        explanation = f"Chosen by the publisher ({known}){also}."
    elif binding:
        explanation = f"Inherited ({known}); its terms bind what is made from that base."
    elif new:
        explanation = f"Inherited from the new base ({known})."
    else:
        explanation = f"Unknown ({known}): the licences of both bases hold."
    return License(chosen or ("other" if both else next(iter(binding), new)), explanation, conflict)
