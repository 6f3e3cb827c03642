"""Documents for the tests of the reports: a full one with both kinds of tasks, a hostile one, a large one."""

from __future__ import annotations

import dataclasses
import random

from example_document import example_document

from muscle_hf.compare import document as d
from muscle_hf.metrics import Estimate, wilson_interval

RLO, ESC, BEL = "\u202e", "\x1b", "\x07"
HOSTILE = (
    '</script><script>window.hacked=1;document.title="hacked"</script>'
    '<img src=x onerror="window.hacked=2"><svg onload="window.hacked=3"></svg>'
    '" onmouseover="window.hacked=4" \' autofocus onfocus=alert(1) <!-- --> ]]> &lt; &#x3c;'
    f"{RLO}gpj.exe\u2066\u200b\ufeff{ESC}[31m{ESC}]0;title{BEL}\x00\x9b2J\r\u2028\u2029"
    "javascript:alert(1) {{7*7}} ${7*7} $csp [bold red]rich[/] | `code` @everyone #1 https://example.org \ud800"
)


def estimate(value: float, spread: float = 0.02) -> Estimate:
    """A number with a made-up interval."""
    return Estimate(value, value - spread, value + spread, 0.95, "bca")


def score_task(name: str = "summary", items: int = 400) -> d.TaskResult:
    """A task whose answers have a similarity to the reference."""
    updates = []
    for label, role, down in (("new", "new", 150), ("muscle", "compat", 90), ("no-mask", "compat", 120)):
        flows = [
            d.Flow(("start", "regressed", "improved"), 40),
            d.Flow(("start", "regressed", "unchanged"), 45),
            d.Flow(("start", "regressed", "regressed"), 65),
            d.Flow(("start", "unchanged", "unchanged"), 60),
            d.Flow(("start", "unchanged", "regressed"), 10),
            d.Flow(("start", "improved", "improved"), 165),
            d.Flow(("start", "improved", "regressed"), 15),
        ]
        against = None if role == "new" else _against(flows, "better")
        updates.append(
            d.Update(
                label=label,
                role=role,
                accuracy=estimate(0.342 + (150 - down) / 3000, 0.012),
                change=estimate(0.021 + (150 - down) / 3000, 0.009),
                counts={"improved": 310 - down, "unchanged": items - 310, "regressed": down},
                rates={
                    "nfr_smooth": wilson_interval(down, items),
                    "pfr_smooth": wilson_interval(310 - down, items),
                    "m_g": estimate(0.131),
                    "m_r": estimate(0.088),
                },
                p_value=0.0004,
                p_adjusted=0.0008,
                verdict="better",
                against_new=against,
                inheritance=None if role == "new" else _score_audit(label),
            )
        )
    flips = [
        d.Flip(
            id=f"dialogue-{i}",
            outcomes={"new": "regressed", "muscle": "improved" if i % 2 else "regressed", "no-mask": "unchanged"},
            prompt=f"Dialogue {i}\nAnna: Are you coming to the cinema at eight?\nBen: Yes, ten minutes late.",
            target="Ben will come to the cinema at eight, ten minutes late.",
            answers={
                "old": "Ben will come to the cinema at eight but ten minutes late.",
                "new": "Anna and Ben will go to the theatre at nine.",
                "muscle": "Ben will come to the cinema at eight, ten minutes late.",
                "no-mask": "Ben will come to the cinema at eight but ten minutes late.",
            },
            correct=dict.fromkeys(("old", "new", "muscle", "no-mask")),
            scores={"old": 0.82, "new": 0.41, "muscle": 1.0, "no-mask": 0.82},
            columns={"tone": "calm"},
            severity=0.41,
        )
        for i in range(60)
    ]
    return d.TaskResult(name, "rouge1", "score", items, estimate(0.321, 0.012), updates, flips, flips_total=255)


def _score_audit(label: str) -> d.Inheritance:
    back = 12 if label == "muscle" else 25
    return d.Inheritance(
        shed=160,
        returned=wilson_interval(back + 8, 160),
        inherited=wilson_interval(back, 160),
        usual=None,
        fresh=wilson_interval(10, 70),
        slices=[d.InheritanceSlice("tone", "calm", wilson_interval(back, 80), wilson_interval(back - 4, 80))],
        items=[d.InheritedItem(f"dialogue-{index}", "same") for index in range(3)],
    )


def _against(flows: list[d.Flow], verdict: d.Verdict) -> d.AgainstNew:
    return d.AgainstNew(estimate(-0.15, 0.05), -40.0, estimate(0.02), estimate(0.02), 0.001, 0.002, verdict, flows)


def full_document() -> d.Document:
    """Two kinds of tasks, slices with verdicts, a gate that fails, noise floors, a total, warnings."""
    base = example_document(items=1200, seed=3)
    values = [
        "angry",
        "calm",
        "polite",
        "hurried",
        "sarcastic",
        "formal",
        "brief",
        "long",
        "rambling",
        "joking",
        "x",
        "y",
    ]
    updates = []
    for update in base.tasks[0].updates:
        pieces = [
            dataclasses.replace(
                update.slices[0],
                value=value,
                items=100 - index,
                change=estimate(-0.13 + 0.02 * index, 0.05),
                nfr=wilson_interval(20 - index, 100 - index),
                p_adjusted=0.004 if index < 2 else 0.6,
                verdict="worse" if index < 2 else "no difference shown" if index < 11 else "better",
            )
            for index, value in enumerate(values)
        ]
        updates.append(dataclasses.replace(update, slices=pieces))
    task = dataclasses.replace(base.tasks[0], updates=updates, left_out=3)
    bound = dataclasses.replace(updates[0].rates["nfr"], low=float("-inf"))
    checks = [
        d.GateCheck("max_nfr", "routing", "new", 0.1, bound, "fail", "new breaks 14.8%, more than 10%.", 0.004),
        d.GateCheck("max_nfr", "routing", "muscle", 0.1, updates[1].rates["nfr"], "pass", "muscle keeps it.", 0.004),
        d.GateCheck(
            "min_accuracy_gain", "routing", "muscle", 0.01, updates[1].change, "too little data", "Unclear.", None
        ),
    ]
    total = dataclasses.replace(
        task,
        name="total",
        tasks=["routing", "other"],
        flips=[],
        updates=[dataclasses.replace(update, slices=[], inheritance=None) for update in updates],
    )
    return dataclasses.replace(
        base, tasks=[task, score_task()], gate=d.Gate("fail", checks, "update-budget.yaml"), totals=[total]
    )


def hostile_document(answer_length: int = 0) -> d.Document:
    """Every text that can come from data is an attack; ``answer_length`` adds a long answer."""
    base = example_document(items=60)
    names = {
        "old": f"old {HOSTILE}",
        "new": f"new {HOSTILE}",
        "muscle": f"muscle {HOSTILE}",
        "no-mask": f"no {HOSTILE}",
    }
    long = "lorem ipsum " * (answer_length // 12 + 1)

    def renamed(mapping: dict) -> dict:
        return {names[key]: value for key, value in mapping.items()}

    updates = [
        dataclasses.replace(
            update,
            label=names[update.label],
            slices=[dataclasses.replace(piece, column=HOSTILE, value=HOSTILE) for piece in update.slices],
            inheritance=update.inheritance and _hostile_inheritance(update.inheritance),
        )
        for update in base.tasks[0].updates
    ]
    flips = [
        d.Flip(
            id=f"{index} {HOSTILE}",
            outcomes=renamed(flip.outcomes),
            prompt=f"prompt {index} {HOSTILE}",
            target=HOSTILE,
            answers={names[key]: f"{key} {HOSTILE}" + (long[:answer_length] if index == 0 else "") for key in names},
            correct=renamed(flip.correct),
            scores=renamed(flip.scores),
            choices=[HOSTILE, "b"],
            columns={HOSTILE: HOSTILE},
            severity=flip.severity,
            inherited=renamed(flip.inherited),
        )
        for index, flip in enumerate(base.tasks[0].flips)
    ]
    task = dataclasses.replace(base.tasks[0], name=HOSTILE, metric=HOSTILE, updates=updates, flips=flips)
    checks = [
        dataclasses.replace(base.gate.checks[0], task=HOSTILE, label=names["new"], message=HOSTILE, verdict="fail")
    ]
    return dataclasses.replace(
        base,
        models=[dataclasses.replace(m, label=names[m.label], source=HOSTILE, format=HOSTILE) for m in base.models],
        tasks=[task],
        gate=d.Gate("fail", checks, HOSTILE),
        totals=[dataclasses.replace(task, updates=[dataclasses.replace(u, slices=[]) for u in updates])],
        noise=[dataclasses.replace(base.noise[0], task=HOSTILE)],
        warnings=[HOSTILE],
        options={HOSTILE: HOSTILE},
        meta={"version": HOSTILE},
    )


def _hostile_inheritance(audit: d.Inheritance) -> d.Inheritance:
    return dataclasses.replace(
        audit,
        slices=[dataclasses.replace(piece, column=HOSTILE, value=HOSTILE) for piece in audit.slices],
        items=[dataclasses.replace(item, id=f"{index} {HOSTILE}") for index, item in enumerate(audit.items)],
    )


def large_document(flips: int = 20_000, words: int = 120, seed: int = 0) -> d.Document:
    """Many flips with prompts and answers of natural length."""
    rng = random.Random(seed)
    base = example_document(items=200)
    vocabulary = [
        f"{a}{b}"
        for a in ("par", "tic", "re", "ship", "bill", "ord")
        for b in ("cel", "ket", "fund", "ment", "ing", "er")
    ]
    template = base.tasks[0].flips
    made = []
    for index in range(flips):
        prompt = " ".join(rng.choices(vocabulary, k=words))
        answer = rng.choices(vocabulary, k=words // 3)
        made.append(
            dataclasses.replace(
                template[index % len(template)],
                id=f"item-{index}",
                prompt=f"needle{index} {prompt}",
                answers={
                    label: " ".join(rng.choice(vocabulary) if rng.random() < 0.2 else word for word in answer)
                    for label in ("old", "new", "muscle", "no-mask")
                },
                severity=rng.random(),
            )
        )
    task = dataclasses.replace(base.tasks[0], flips=made, flips_total=flips + 500)
    return dataclasses.replace(base, tasks=[task])
