"""The words of the embedded world: queues, product lines, and the many ways in which customers name a problem.

Everything here is written for this world. ``{p}`` stands for the product as the customer calls it ("my Talvik"),
``{a|b|c}`` for one of several wordings.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

_SLOT = re.compile(r"\{([^{}|]*\|[^{}]*)\}")


@dataclass(frozen=True)
class Queue:
    """A team that answers tickets. ``team`` is what colleagues call it; ``work`` says what it looks after."""

    name: str
    team: str
    work: str


@dataclass(frozen=True)
class Line:
    """A product line.

    ``home`` is the queue of problems that only the line can tell; ``fee`` is kept when an opened box comes back.
    """

    name: str
    home: str
    fee: int
    device: bool = True


@dataclass(frozen=True)
class Issue:
    """A kind of problem. ``queue`` is None where the product's line decides (:attr:`Line.home`).

    ``plain`` wordings say what is wrong; ``idioms`` are sayings whose meaning must be known.
    """

    name: str
    queue: str | None
    summary: str
    plain: tuple[str, ...]
    idioms: tuple[str, ...]
    device_only: bool = False


def fill(pattern: str, rng: random.Random) -> str:
    """Chooses one wording for every ``{a|b|c}`` in ``pattern``."""
    return _SLOT.sub(lambda match: rng.choice(match.group(1).split("|")), pattern)


QUEUES = (
    Queue("billing", "payments desk", "money, invoices and refunds"),
    Queue("delivery", "parcel desk", "couriers, parcels and addresses"),
    Queue("repairs", "workshop", "broken machines and spare parts"),
    Queue("network", "line engineers", "signals, cables and everything that connects"),
    Queue("software", "developers", "screens, updates and bugs"),
    Queue("accounts", "profile team", "logins, profiles and plans"),
)

LINES = (
    Line("router", "network", 6),
    Line("doorbell", "network", 4),
    Line("printer", "repairs", 7),
    Line("kettle", "repairs", 3),
    Line("tablet", "software", 9),
    Line("watch", "software", 5),
    Line("radio plan", "accounts", 2, device=False),
    Line("cloud plan", "accounts", 8, device=False),
)

ISSUES = (
    Issue(
        "double_charge",
        "billing",
        "charged twice",
        (
            "I was {charged|billed} twice for {p}",
            "{the same amount|the full price} {left|was taken from} my {card|account} two times for {p}",
            "there are two {identical charges|equal debits} for {p} on my statement",
            "you {took|collected} the {price|money} of {p} a second time",
        ),
        (
            "you double dipped on {p}",
            "my bank thinks I bought {p} and its twin",
            "I am seeing double since I paid for {p}",
            "{p} was rung up once more",
            "you had two bites of the cherry with {p}",
            "my wallet got hit by an echo after {p}",
        ),
    ),
    Issue(
        "wrong_amount",
        "billing",
        "wrong amount",
        (
            "the {price|amount} you {charged|asked} for {p} is {too high|not what was agreed}",
            "the {discount|voucher} for {p} was not {applied|taken off}",
            "I {paid|was billed} more than the {advertised|listed} price for {p}",
        ),
        (
            "you fleeced me over {p}",
            "{p} cost me an arm and a leg, not what the page said",
            "your sums for {p} do not add up",
            "I paid through the nose for {p}",
            "somebody padded the bill for {p}",
        ),
    ),
    Issue(
        "refund_missing",
        "billing",
        "refund missing",
        (
            "I {returned|sent back} {p} {weeks ago|last month} and {the refund has not come|got no money back}",
            "my {refund|credit} for {p} is still {missing|outstanding}",
            "when will I {get|see} the money back for {p}",
        ),
        (
            "you are sitting on my cash since {p} went home",
            "my pennies for {p} never found the way back",
            "{p} is gone and so are my savings",
            "I am still out of pocket over {p}",
            "{p} came back to you, my coins did not come back to me",
        ),
    ),
    Issue(
        "invoice",
        "billing",
        "needs an invoice",
        (
            "I need {an invoice|a receipt} for {p}",
            "please {send|mail} me the {invoice|receipt} of {p} {again|for my tax office}",
            "the {invoice|receipt} for {p} shows the wrong {company|tax number}",
        ),
        (
            "my tax man wants some paper about {p}",
            "I have nothing in black and white for {p}",
            "my bookkeeper is after me because of {p}",
            "{p} left no paper trail",
        ),
    ),
    Issue(
        "late",
        "delivery",
        "parcel is late",
        (
            "{p} {has not arrived|is still not here} {after ten days|yet}",
            "the {parcel|package} with {p} is {late|overdue}",
            "the tracking page of {p} has not {moved|changed} {for a week|since Monday}",
            "{p} should have been {delivered|brought} {last week|on Friday}",
        ),
        (
            "{p} has gone walkabout",
            "{p} must be on a sightseeing tour",
            "still waiting at the window for {p}",
            "{p} took the scenic route",
            "{p} is lost in the wild",
            "snails are carrying {p}, it seems",
        ),
        device_only=True,
    ),
    Issue(
        "wrong_item",
        "delivery",
        "wrong item sent",
        (
            "you sent {me something else|another item} instead of {p}",
            "the box {held|contained} the wrong {item|colour} and not {p}",
            "I ordered {p} and {got|received} a different {thing|one}",
        ),
        (
            "you mixed up the boxes of me and somebody else, no {p} inside",
            "I opened the box and met a stranger, not {p}",
            "{p} turned out to be a changeling",
            "I got an orange where I asked for an apple, namely {p}",
        ),
        device_only=True,
    ),
    Issue(
        "box_damaged",
        "delivery",
        "damaged in transit",
        (
            "the {box|parcel} of {p} was {crushed|torn|soaked} {on arrival|when it came}",
            "the {courier|driver} {dropped|threw} the box with {p}",
            "{p} came out of the {box|parcel} damaged by the {courier|transport}",
        ),
        (
            "{p} lost a boxing match on the way to me",
            "{p} came as a jigsaw puzzle",
            "somebody played football with {p} on the road",
            "{p} had a rough ride to my door",
            "an elephant sat on {p} on its way here",
        ),
        device_only=True,
    ),
    Issue(
        "address",
        "delivery",
        "new delivery address",
        (
            "please {send|bring} {p} to {another|a new} address",
            "I {moved|am moving} and {p} is on its way to the old {flat|house}",
            "can {the courier|you} leave {p} with {a neighbour|the shop downstairs}",
        ),
        (
            "I will have flown the nest before {p} lands",
            "{p} is heading for my ex",
            "pulled up stakes, so {p} needs a new goal",
            "{p} is about to knock on the wrong door",
        ),
        device_only=True,
    ),
    Issue(
        "locked_out",
        "accounts",
        "locked out",
        (
            "I cannot {log in|sign in} to my {profile|page} since I bought {p}",
            "my {password|login} for {p} is {refused|not accepted}",
            "I {forgot|lost} the password that goes with {p}",
        ),
        (
            "I stand before a shut gate with {p}",
            "the magic word for {p} has slipped my mind",
            "the doorman does not know me, says {p}",
            "open sesame does not do it for {p}",
            "{p} treats me like a burglar",
        ),
    ),
    Issue(
        "profile",
        "accounts",
        "profile change",
        (
            "please change the {name|mail address} on the profile of {p}",
            "I want to {close|delete} my profile that holds {p}",
            "{someone else|a stranger} is using my {login|profile} with {p}",
        ),
        (
            "I tied the knot, so {p} should know my new name",
            "forget that {p} and I ever met",
            "there is a cuckoo in my nest called {p}",
            "{p} still thinks that I am my late aunt",
        ),
    ),
    Issue(
        "wifi",
        "network",
        "poor wifi signal",
        (
            "the wifi {signal|reception} is {weak|gone} upstairs, says {p}",
            "pages load very slowly over the {line|wifi} with {p}",
            "the internet {line|connection} drops {every evening|all the time}, {p} shows no signal",
        ),
        (
            "the air is too thin for {p} upstairs",
            "one bar on a good day with {p}",
            "{p} talks to nobody behind the thick wall",
            "surfing like wading through mud with {p}",
        ),
    ),
    Issue(
        "broken_part",
        "repairs",
        "broken part",
        (
            "{a button|the lid|the glass} of {p} is {cracked|broken off|loose}",
            "{p} makes a {grinding|rattling} noise and smells {burnt|of smoke}",
            "I need a spare {part|cable|lid} for {p}",
        ),
        (
            "{p} coughs like an old tractor",
            "{p} has lost a tooth",
            "{p} wears a plaster by now",
            "something is dancing inside {p}",
        ),
        device_only=True,
    ),
    Issue(
        "update",
        "software",
        "failed update",
        (
            "the {update|new version} of {p} {fails|stops} at ninety percent",
            "the {menu|screen} of {p} shows {a bug|wrong text} since the update",
            "the {app|program} of {p} {crashes|closes} {on start|at once}",
        ),
        (
            "{p} speaks in riddles since the new version",
            "{p} chokes on its own medicine from last night",
            "the new coat of paint does not suit {p}",
            "there are gremlins in the code of {p}",
        ),
    ),
    Issue(
        "dead",
        None,
        "does not start",
        (
            "{p} does not {start|turn on|come on} {any more|at all}",
            "{p} {stopped working|went off} {yesterday|this morning|overnight}",
            "nothing happens when I {start|switch on} {p}",
        ),
        (
            "{p} has given up the ghost",
            "{p} kicked the bucket",
            "{p} is playing dead",
            "{p} is a brick",
            "the lights are out at {p}",
        ),
    ),
    Issue(
        "freeze",
        None,
        "freezes",
        (
            "{p} {freezes|hangs|gets stuck} after {a few minutes|some use}",
            "{p} stops {in the middle|half way} and does not {go on|react}",
        ),
        (
            "{p} turns into a statue",
            "{p} is frozen like a lake",
            "{p} falls asleep on the job",
            "{p} stares into space",
        ),
    ),
    Issue(
        "flaky",
        None,
        "works only sometimes",
        (
            "{p} works {only sometimes|one day and not the next}",
            "{p} {cuts out|fails} {now and then|every few hours}",
        ),
        (
            "{p} has its moods",
            "{p} is a fair weather friend",
            "{p} is on and off like a bad romance",
            "{p} blows hot and cold",
        ),
    ),
    Issue(
        "setup",
        None,
        "setup fails",
        (
            "I cannot {set up|get started with} {p}",
            "the {first steps|setup} of {p} {fail|fails} {each time|again and again}",
        ),
        (
            "{p} and I never got off the ground",
            "{p} fell at the first fence",
            "{p} will not come out of its shell",
        ),
    ),
    Issue(
        "error",
        None,
        "shows an error",
        (
            "{p} {shows|reports} error {four|seven|nine}",
            "there is {a warning|an error code} on {p}",
        ),
        (
            "{p} waves a red flag at me",
            "{p} is crying wolf",
            "{p} throws a tantrum",
        ),
    ),
)

# Tone -> (openings, closings); an empty string is no words at all.
TONES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "polite": (
        ("Hello,", "Good morning,", "Dear team,", "Hi there,"),
        ("Thank you for your help.", "Thanks a lot!", "Kind regards.", ""),
    ),
    "angry": (
        ("This is a joke.", "I am furious.", "Enough is enough!", "Unbelievable."),
        ("Fix this now!", "Never again.", "I want an answer today.", ""),
    ),
    "terse": (("",), ("", "", "Thx.")),
    "chatty": (
        ("Hi, me again.", "So, long story short:", "Funny thing:", "You will not believe this,"),
        ("Anyway, have a nice day!", "My cat sends her love.", "Over to you.", ""),
    ),
    "formal": (
        ("To whom it may concern,", "Dear Sir or Madam,", "I am writing to report that"),
        ("I look forward to your reply.", "Yours faithfully.", ""),
    ),
}

# Problems that are over, and things that do not matter: they name other issues without being the reason to write.
SETTLED = (
    "The other day {x}, but that is settled.",
    "Last year {x}, you sorted it out at once.",
    "Not that {x}, it is something else.",
    "It is not the old story that {x}.",
)
SMALL_TALK = (
    "My order number is {n}.",
    "I have been a customer for {n} years.",
    "I live on floor {n}.",
    "My neighbour has the same one.",
    "I tried it {n} times.",
    "I love the colour, though.",
    "The hotline had me wait for {n} minutes.",
    "I use it every day.",
    "It was a present from my sister.",
)
# Two open problems in one ticket: which one the desk takes first is anybody's guess.
JOINERS = (", and also ", "; apart from that ", ". Moreover ", ", plus ")

PRODUCT_CALLS = ("my {n}", "the {n}", "our {n}", "the {n} I bought", "the new {n}")
PRODUCT_CALLS_WITH_LINE = ("my {n} {l}", "the {l} {n}", "our {l}, a {n},")
