"""The embedded world: a deterministic generator of help-desk tickets.

Products have coined names that do not tell what they are, customers speak in sayings, and some tickets are truly
ambiguous. What a name or a saying means can only be learned from text, so two bases that read different text make
different mistakes: the situation of a model update.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from lexicon import (
    ISSUES,
    JOINERS,
    LINES,
    PRODUCT_CALLS,
    PRODUCT_CALLS_WITH_LINE,
    QUEUES,
    SETTLED,
    SMALL_TALK,
    TONES,
    Issue,
    Line,
    fill,
)

SPLITS = ("pretraining", "train", "validation", "test")
PRODUCTS_PER_LINE = 20
AMBIGUOUS_SHARE = 0.10
_IDIOM_SHARE = 0.5
_SETTLED_SHARE = 0.2
_LINE_ISSUE_SHARE = 0.75  # of the tickets of a queue that is home to product lines
_NAMED_LINE_SHARE = 0.2


@dataclass(frozen=True)
class Product:
    """A product: a coined ``name`` and the ``line`` it belongs to."""

    name: str
    line: Line


@dataclass(frozen=True)
class Ticket:
    """A customer's message and what is true of it.

    Args:
        text: The message.
        queue: The queue that the desk put it in.
        product: The product that it is about.
        issue: The problem that decides the queue.
        wording: ``plain`` or ``idiom``.
        tone: A key of :data:`lexicon.TONES`.
        ambiguous: Two problems of different queues are open, and either may have been taken first.
        settled: Another problem is mentioned that is not the reason to write.
    """

    text: str
    queue: str
    product: Product
    issue: Issue
    wording: str
    tone: str
    ambiguous: bool
    settled: bool


Weights = Mapping[str, float]
"""How often a product's name or a saying comes up, relative to the others; what is not named has weight 1."""


@cache
def products() -> tuple[Product, ...]:
    """All products: :data:`PRODUCTS_PER_LINE` for each line, with names that are unique and do not tell the line."""
    rng = random.Random("products")
    starts = ("Ta", "Bre", "Or", "Mi", "Ku", "Zel", "Fa", "No", "Vi", "Hal", "Je", "Sto", "Lu", "Qui", "Pa", "Ri")
    middles = ("l", "v", "nd", "r", "sk", "mm", "x", "t", "lv", "b")
    ends = ("ik", "o", "ara", "en", "us", "ia", "ex", "um", "ett", "ino")
    names: list[str] = []
    while len(names) < PRODUCTS_PER_LINE * len(LINES):
        name = rng.choice(starts) + rng.choice(middles) + rng.choice(ends)
        if name not in names:
            names.append(name)
    return tuple(Product(name, LINES[index % len(LINES)]) for index, name in enumerate(names))


def split_of(text: str) -> str:
    """The split that ``text`` belongs to. The text alone decides, so splits are disjoint whatever the seed."""
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 100
    return SPLITS[0] if bucket < 40 else SPLITS[1] if bucket < 70 else SPLITS[2] if bucket < 80 else SPLITS[3]


def queue_of(issue: Issue, product: Product) -> str:
    """The desk's rule: the issue's own queue, or the home of the product's line."""
    return issue.queue or product.line.home


def ticket(rng: random.Random, weights: Weights | None = None) -> Ticket:
    """Writes one ticket. Queues are equally frequent; ``weights`` make some products and sayings more so."""
    weights = weights or {}
    queue = rng.choice(QUEUES).name
    issue, product = _issue_and_product(queue, rng, weights)
    clause, wording = _clause(issue, product, rng, weights)
    tone = rng.choice(tuple(TONES))
    ambiguous = rng.random() < AMBIGUOUS_SHARE
    settled = not ambiguous and rng.random() < _SETTLED_SHARE
    extra = ""
    if ambiguous:
        clause = _with_second_problem(clause, queue, rng, weights)
    elif settled:
        extra = _settled(queue, rng, weights)
    elif rng.random() < 0.35:
        extra = rng.choice(SMALL_TALK).format(n=rng.randint(2, 60))
    text = _compose(clause, extra, tone, rng)
    return Ticket(text, queue, product, issue, wording, tone, ambiguous, settled)


def tickets(split: str, seed: int | str, weights: Weights | None = None) -> Iterator[Ticket]:
    """Endless, deterministic, distinct tickets of ``split``.

    Raises:
        ValueError: ``split`` is none of :data:`SPLITS`.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    rng = random.Random(f"{split}/{seed}")
    seen: set[str] = set()
    while True:
        candidate = ticket(rng, weights)
        if split_of(candidate.text) == split and candidate.text not in seen:
            seen.add(candidate.text)
            yield candidate


def clause_about(issue: Issue, name: str, rng: random.Random, weights: Weights | None = None) -> tuple[str, str]:
    """Words ``issue`` for a product called ``name``; returns the clause and ``plain`` or ``idiom``."""
    weights = weights or {}
    if rng.random() < _IDIOM_SHARE:
        idiom = rng.choices(issue.idioms, [weights.get(text, 1.0) for text in issue.idioms])[0]
        return idiom.replace("{p}", name), "idiom"
    return fill(rng.choice(issue.plain), rng).replace("{p}", name), "plain"


def call(product: Product, rng: random.Random) -> str:
    """How a customer calls ``product``: mostly by its name alone."""
    calls = PRODUCT_CALLS_WITH_LINE if rng.random() < _NAMED_LINE_SHARE else PRODUCT_CALLS
    return rng.choice(calls).format(n=product.name, l=product.line.name)


def _issue_and_product(queue: str, rng: random.Random, weights: Weights) -> tuple[Issue, Product]:
    homes = [line for line in LINES if line.home == queue]
    by_line = bool(homes) and rng.random() < _LINE_ISSUE_SHARE
    issue = rng.choice([issue for issue in ISSUES if issue.queue == (None if by_line else queue)])
    lines = homes if by_line else [line for line in LINES if line.device or not issue.device_only]
    line = rng.choice(lines)
    return issue, product_of(line, rng, weights)


def product_of(line: Line, rng: random.Random, weights: Weights | None = None) -> Product:
    """A product of ``line``."""
    weights = weights or {}
    candidates = [product for product in products() if product.line == line]
    return rng.choices(candidates, [weights.get(product.name, 1.0) for product in candidates])[0]


def _clause(issue: Issue, product: Product, rng: random.Random, weights: Weights) -> tuple[str, str]:
    return clause_about(issue, call(product, rng), rng, weights)


def _other(queue: str, rng: random.Random, weights: Weights) -> str:
    """A clause about a problem of another queue than ``queue``."""
    other = rng.choice([name for name in (queue.name for queue in QUEUES) if name != queue])
    issue, product = _issue_and_product(other, rng, weights)
    return _clause(issue, product, rng, weights)[0]


def _with_second_problem(clause: str, queue: str, rng: random.Random, weights: Weights) -> str:
    both = [clause, _other(queue, rng, weights)]
    rng.shuffle(both)
    return rng.choice(JOINERS).join(both)


def _settled(queue: str, rng: random.Random, weights: Weights) -> str:
    return rng.choice(SETTLED).format(x=_other(queue, rng, weights))


def _compose(clause: str, extra: str, tone: str, rng: random.Random) -> str:
    openings, closings = TONES[tone]
    opening, closing = rng.choice(openings), rng.choice(closings)
    # An opening that ends in a comma or runs on is continued in lower case, "I" apart.
    runs_on = opening and opening[-1] not in ".!:"
    sentence = clause if runs_on else clause[0].upper() + clause[1:]
    parts = [f"{opening} {sentence}.".strip()]
    if extra:
        parts.insert(rng.randint(0, 1) if not opening else 1, extra)
    if closing:
        parts.append(closing)
    return " ".join(parts)
