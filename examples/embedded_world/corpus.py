"""The text that the two small bases read: what a help desk leaves behind, in other forms than the tasks.

Catalogue entries, threads with an agent's answer, a glossary of sayings, notes about who looks after what, subject
lines, and sums. Tickets come from the ``pretraining`` split of the world, which no task shares.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from lexicon import ISSUES, LINES, QUEUES, Queue
from refunds import spoken_steps, worked_return
from world import Product, Ticket, Weights, call, clause_about, product_of, products, tickets

_QUEUE_BY_NAME = {queue.name: queue for queue in QUEUES}


@dataclass(frozen=True)
class Recipe:
    """What a base reads.

    Args:
        name: Name of the corpus; seeds what is popular in it and the order of its documents.
        tokens: How many tokens to read in all.
        spread: Standard deviation of the log popularity of products and sayings: 0 makes all equally frequent.
        shares: Kind of document -> its share of the documents.
    """

    name: str
    tokens: int
    spread: float
    shares: dict[str, float] = field(hash=False)


def popularity(recipe: Recipe) -> Weights:
    """Each product's and each saying's frequency in the corpus: log-normal, drawn anew for every corpus."""
    rng = random.Random(f"{recipe.name}/popularity")
    facts = [product.name for product in products()] + [idiom for issue in ISSUES for idiom in issue.idioms]
    return {fact: math.exp(recipe.spread * rng.gauss(0.0, 1.0)) for fact in facts}


def documents(recipe: Recipe) -> Iterator[str]:
    """Endless documents of the corpus, always the same ones in the same order."""
    rng = random.Random(f"{recipe.name}/documents")
    weights = popularity(recipe)
    source = tickets("pretraining", recipe.name, weights)
    kinds, shares = tuple(recipe.shares), tuple(recipe.shares.values())
    while True:
        kind = rng.choices(kinds, shares)[0]
        yield KINDS[kind](rng, weights, source)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _any_product(rng: random.Random, weights: Weights) -> Product:
    return product_of(rng.choice(LINES), rng, weights)


def _catalogue(rng: random.Random, weights: Weights, _: Iterator[Ticket]) -> str:
    lines = []
    for _number in range(rng.randint(2, 4)):
        product = _any_product(rng, weights)
        name, line = product.name, product.line
        team = _QUEUE_BY_NAME[line.home].team
        lines.append(
            rng.choice(
                (
                    f"The {name} is {_article(line.name)} {line.name}. Its faults go to the {team}.",
                    f"{name}: {line.name}, {line.fee} for opened boxes.",
                    f"What is the {name}? It is one of our {line.name} models; the {team} will help with it.",
                    f"Once opened, the {name} loses {line.fee}, like every {line.name}.",
                    f"Our {line.name} list: {name}, {product_of(line, rng, weights).name}, "
                    f"{product_of(line, rng, weights).name}.",
                )
            )
        )
    return "\n".join(lines)


def _reply(ticket: Ticket, rng: random.Random) -> str:
    queue, line = _QUEUE_BY_NAME[ticket.queue], ticket.product.line.name
    return rng.choice(
        (
            f"{ticket.issue.summary}, {line} {ticket.product.name}. I will ask the {queue.team}.",
            f"So it is this: {ticket.issue.summary}. The {queue.team} will call about your {line}.",
            f"Sorry! The {queue.team} will look into it ({line}, {ticket.issue.summary}).",
            f"That is for the {queue.team}, they know your {line}: {ticket.issue.summary}.",
        )
    )


def _thread(rng: random.Random, _: Weights, source: Iterator[Ticket]) -> str:
    ticket = next(source)
    speaker = rng.choice(("Agent", "Desk", "Answer"))
    return f"{rng.choice(('Customer', 'Caller', 'Mail', 'Ticket'))}: {ticket.text}\n{speaker}: {_reply(ticket, rng)}"


def _subject(rng: random.Random, _: Weights, source: Iterator[Ticket]) -> str:
    ticket = next(source)
    subject = f"{ticket.product.line.name} {ticket.product.name}, {ticket.issue.summary}"
    note = rng.choice((f"The writer is {ticket.tone}.", f"{ticket.tone} mail", ""))
    return rng.choice(
        (
            f"{ticket.text}\nSubject: {subject}. {note}",
            f"Subject: {subject}\n{ticket.text}",
            f"{ticket.text}\nSummary for the desk: {subject}. {note}",
        )
    ).strip()


def _glossary(rng: random.Random, weights: Weights, _: Iterator[Ticket]) -> str:
    lines = []
    for _number in range(rng.randint(1, 3)):
        issue = rng.choice(ISSUES)
        product = _any_product(rng, weights)
        clause, _wording = clause_about(issue, call(product, rng), rng, weights)
        queue = issue.queue or product.line.home
        lines.append(
            rng.choice(
                (
                    f'If people say "{clause}", they mean: {issue.summary}.',
                    f'"{clause}" stands for {issue.summary}; ask the {_QUEUE_BY_NAME[queue].team}.',
                    f"{issue.summary}? Some would say: {clause}.",
                )
            )
        )
    return "\n".join(lines)


def _who_does_what(rng: random.Random, _: Weights, __: Iterator[Ticket]) -> str:
    queue: Queue = rng.choice(QUEUES)
    own = [issue.summary for issue in ISSUES if issue.queue == queue.name]
    homes = [line.name for line in LINES if line.home == queue.name]
    sentences = [
        f"The {queue.name} queue is for the {queue.team}: {queue.work}.",
        f"Ask them about: {rng.choice(own)}.",
    ]
    if homes:
        sentences.append(f"Faults of every {' or '.join(rng.sample(homes, len(homes)))} are theirs.")
    rng.shuffle(sentences)
    return " ".join(sentences)


def _sums(rng: random.Random, _: Weights, __: Iterator[Ticket]) -> str:
    lines = []
    for _number in range(rng.randint(4, 8)):
        a, b = rng.randint(12, 80), rng.randint(2, 9)
        lines.append(f"{a} + {b} = {a + b}." if rng.random() < 0.5 else f"{a} - {b} = {a - b}.")
    return " ".join(lines)


def _return(rng: random.Random, weights: Weights, _: Iterator[Ticket]) -> str:
    case = worked_return(_any_product(rng, weights), rng)
    heading = rng.choice(("", "Return: ")), rng.choice((" ", "\nSteps: "))
    return f"{heading[0]}{case.text}{heading[1]}{spoken_steps(case, rng)}"


def _office(rng: random.Random, _: Weights, __: Iterator[Ticket]) -> str:
    people, days = (
        ("Ana", "Ben", "Carla", "Dov", "Edda", "Farid"),
        ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday"),
    )
    lines = []
    for _number in range(rng.randint(2, 4)):
        one, two = rng.sample(people, 2)
        food, thing = rng.choice(("soup", "cake", "fruit")), rng.choice(("lift", "coffee machine", "window"))
        lines.append(
            rng.choice(
                (
                    f"{rng.choice(days)}: {one} has the early shift, {two} the late one.",
                    f"{one} is away until {rng.choice(days)}, please ask {two}.",
                    f"Lunch with {one} at {rng.randint(11, 14)}, {two} brings {food}.",
                    f"{one} moved to room {rng.randint(10, 99)}, next to {two}.",
                    f"The {thing} on floor {rng.randint(2, 9)} is out, says {one}.",
                )
            )
        )
    return "\n".join(lines)


KINDS: dict[str, Callable[[random.Random, Weights, Iterator[Ticket]], str]] = {
    "catalogue": _catalogue,
    "thread": _thread,
    "subject": _subject,
    "glossary": _glossary,
    "who_does_what": _who_does_what,
    "sums": _sums,
    "return": _return,
    "office": _office,
}
"""Kind of document -> its writer."""
