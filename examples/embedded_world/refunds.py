"""Returns and their refunds: small sums in which the fee depends on the product's line."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from lexicon import LINES, fill
from world import SPLITS, Product, Weights, product_of, split_of

_FORMS = (
    "I sent back {my|the} {p}. I paid {a} for it, {o}, and {the postage was|posting it cost} {b}.",
    "{Return|Returned}: {p}, price {a}, {o}, postage {b}.",
    "{My|Our} {p} goes home to you, {o}. It was {a}, the {stamps|postage} came to {b}.",
    "Paid {a} for {my|a|the} {p} and {b} to mail it back. {O}.",
)
_OPENED = ("the box is open", "it was opened", "seal broken")
_SEALED = ("the box is sealed", "it was never opened", "seal unbroken")


@dataclass(frozen=True)
class Return:
    """A returned product. The refund is ``price - fee + postage``; ``fee`` is 0 for a sealed box.

    Args:
        text: What the customer writes.
        product: What came back.
        price: What was paid, in whole coins.
        postage: What the way back cost, in whole coins.
        opened: Whether the line's fee is kept.
    """

    text: str
    product: Product
    price: int
    postage: int
    opened: bool

    @property
    def fee(self) -> int:
        return self.product.line.fee if self.opened else 0

    @property
    def refund(self) -> int:
        return self.price - self.fee + self.postage

    @property
    def steps(self) -> str:
        """The refund in steps, ending in ``Refund: <number>``."""
        rest = self.price - self.fee
        state = "opened" if self.opened else "sealed"
        return (
            f"{self.product.line.name}, {state}: fee {self.fee}. {self.price} - {self.fee} = {rest}. "
            f"{rest} + {self.postage} = {self.refund}. Refund: {self.refund}"
        )


def worked_return(product: Product, rng: random.Random) -> Return:
    """Writes a return of ``product``."""
    price, postage, opened = rng.randint(20, 69), rng.randint(2, 9), rng.random() < 0.7
    state = rng.choice(_OPENED if opened else _SEALED)
    text = fill(rng.choice(_FORMS), rng)
    for slot, value in (("p", product.name), ("a", price), ("b", postage), ("o", state), ("O", state.capitalize())):
        text = text.replace("{" + slot + "}", str(value))
    return Return(text, product, price, postage, opened)


def returns(split: str, seed: int | str, weights: Weights | None = None) -> Iterator[Return]:
    """Endless, deterministic, distinct returns of ``split``.

    Raises:
        ValueError: ``split`` is none of :data:`world.SPLITS`.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    rng = random.Random(f"returns/{split}/{seed}")
    seen: set[str] = set()
    while True:
        case = worked_return(product_of(rng.choice(LINES), rng, weights), rng)
        if split_of(case.text) == split and case.text not in seen:
            seen.add(case.text)
            yield case


def spoken_steps(case: Return, rng: random.Random) -> str:
    """The same sum as a clerk would say it: the form in which the bases read it."""
    rest, line = case.price - case.fee, case.product.line.name
    reason = f"an opened {line} loses {case.fee}" if case.opened else f"a sealed {line} loses nothing"
    first, second = f"{case.price} - {case.fee} = {rest}", f"{rest} + {case.postage} = {case.refund}"
    return rng.choice(
        (
            f"Well, {reason}: {first}, with postage {second}.",
            f"We pay {case.refund}, since {reason}. {first}. {second}.",
        )
    )
