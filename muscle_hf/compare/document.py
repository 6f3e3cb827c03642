"""The result of a comparison as plain data: what ``--json`` prints and what every renderer reads.

A :class:`Document` knows nothing about how it was computed or how it is shown. All rates are fractions in [0, 1], all
differences are "updated model minus old model" unless said otherwise, all texts come from data and are *not* escaped:
escaping is the renderer's duty. ``to_dict()`` gives JSON-ready data in which nan and infinities are ``None``.

Labels: each model has a unique short label ("old", "new", "muscle", ...), the key of every per-model dictionary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from html import escape
from typing import Any, Literal

from muscle_hf.metrics.intervals import Estimate

SCHEMA_VERSION = 2

Role = Literal["old", "new", "compat", "control"]
Verdict = Literal["better", "worse", "no difference shown"]
GateVerdict = Literal["pass", "fail", "too little data"]

# Exit code of the command for each verdict of the gate; bad use is 2.
EXIT_CODES: dict[GateVerdict, int] = {"pass": 0, "fail": 1, "too little data": 3}


@dataclass(frozen=True)
class Model:
    """One of the compared models.

    Args:
        label: Unique short name, the key of per-model dictionaries.
        role: ``old`` (exactly one, first), ``new`` (exactly one, second), ``compat`` (any number), ``control`` (shown
            beside them, never judged).
        source: The file or folder its predictions came from, as the user typed it.
        format: What kind of log that was: ``muscle-hf``, ``lm-eval``, ``lighteval``, ``jsonl``, ``csv``, ``parquet``.
        origins: What gave the answers, as the log says (:class:`~muscle_hf.evaluation.predictions.Prediction`), each
            once; None among them: for some it does not say. Empty: it never does.
    """

    label: str
    role: Role
    source: str
    format: str
    origins: list[Mapping[str, Any] | None] = field(default_factory=list)


@dataclass(frozen=True)
class Slice:
    """The ``items`` that share a ``value`` (as text) of a ``column``, old against one updated model.

    The other fields are as of :class:`Update`, within the slice, with Holm's correction over the slices; ``nfr`` is
    ``nfr_smooth`` for tasks of kind ``score``.
    """

    column: str
    value: str
    items: int
    counts: dict[str, int]
    nfr: Estimate
    change: Estimate
    p_value: float
    p_adjusted: float
    verdict: Verdict


@dataclass(frozen=True)
class Flow:
    """How many ``items`` went one way through old -> new -> compatibility model; a task's flows add up to its items.

    ``states`` are ``right`` or ``wrong`` (kind ``score``: ``start`` at the old model, then ``improved``, ``unchanged``
    or ``regressed`` against it).
    """

    states: tuple[str, str, str]
    items: int


@dataclass(frozen=True)
class AgainstNew:
    """A compatibility model held against the plain update (the paper's suffix c).

    Args:
        delta_nfr: NFR_c - NFR with a paired interval (``nfr_smooth`` for kind ``score``); negative is better.
        delta_nfr_percent: The same relative to NFR, in percent; nan if the plain update has no negative flips.
        delta_pfr: PFR_c - PFR.
        delta_accuracy: Accuracy (or mean score) of the compatibility model minus that of the plain update.
        p_value: Of the change of NFR, two-sided and paired.
        p_adjusted: The same after Holm's correction over the tasks.
        verdict: ``better`` where NFR fell, beyond chance.
        flows: old -> new -> compatibility model.
    """

    delta_nfr: Estimate
    delta_nfr_percent: float
    delta_pfr: Estimate
    delta_accuracy: Estimate
    p_value: float
    p_adjusted: float
    verdict: Verdict
    flows: list[Flow]


@dataclass(frozen=True)
class InheritanceSlice:
    """As :class:`Inheritance`, among the items that share a ``value`` (as text) of a ``column``."""

    column: str
    value: str
    returned: Estimate
    inherited: Estimate | None


@dataclass(frozen=True)
class InheritedItem:
    """An error of the old model that the new one had shed and a compatibility model makes again.

    Args:
        answer: ``same``: with the old model's own wrong answer (kind ``score``: back at its score). ``other``: with
            another one (below its score). ``unknown``: the logs do not tell.
    """

    id: str
    answer: Literal["same", "other", "unknown"]


@dataclass(frozen=True)
class Inheritance:
    """Which of the old model's errors a compatibility model takes over although the new model had shed them.

    *Shed* are the items that the old model has wrong and the new one right (kind ``score``: whose score the new model
    raises by more than epsilon). They are the same for all compatibility models, so that a control among them is the
    baseline: what it makes again was not taught by the old model.

    Args:
        shed: Number of shed errors.
        returned: Share of them that this model has wrong again (kind ``score``: is not above the old score).
        inherited: Share of them that it has wrong with the old model's own wrong answer (kind ``score``: is back at
            the old score, within epsilon); None if the answers are unknown.
        usual: Of the items that old and new both have wrong, the share with the same wrong answer: how often two
            versions err alike without any training for it. With two choices they always do. None for kind ``score``
            or if the answers are unknown.
        fresh: Of the items that old and new both have right (kind ``score``: whose score the new model leaves as it
            was), the share that this model has wrong (lowers): errors that neither of the two made.
        slices: Most surely inherited first, by the lower end of the interval; those with less than five shed errors
            last, those without any left out.
        items: The inherited ones first; cut off at the document's ``max_flips``.
    """

    shed: int
    returned: Estimate
    inherited: Estimate | None
    usual: Estimate | None
    fresh: Estimate
    slices: list[InheritanceSlice] = field(default_factory=list)
    items: list[InheritedItem] = field(default_factory=list)


@dataclass(frozen=True)
class Measure:
    """What answers take: ``answer length (characters)`` or a column that both logs have; no gate judges it.

    ``old`` and ``new`` are the means of the old and the updated model over the ``items`` that have both.
    """

    name: str
    old: float
    new: float
    change: Estimate
    items: int


@dataclass(frozen=True)
class Update:
    """One updated model (new or compat) against the old one on one task.

    Args:
        accuracy: Its accuracy with interval; the mean score for tasks of kind ``score``.
        change: Its accuracy (mean score) minus the old model's, with a paired interval.
        counts: Kind ``correct``: the quadrants ``both_right``, ``positive_flips``, ``both_wrong``, ``negative_flips``.
            Kind ``score``: ``improved``, ``unchanged``, ``regressed``. They add up to the task's items.
        rates: Kind ``correct``: ``nfr``, ``pfr``, ``nfr_mc`` (multiple choice only), ``btc``, ``bec``, ``nfi``,
            ``relative_nfr``, ``agreement`` (where answers are known), ``nfr_adjusted`` (less the flips that guesses
            make, where the number of choices is known). Kind ``score``: ``nfr_smooth``, ``pfr_smooth``,
            ``m_g``, ``m_r`` (the last two in the score's unit). ``value`` is nan where the denominator is empty.
        p_value: Two-sided paired test of old against this model (exact McNemar; sign flips with clusters or scores).
        p_adjusted: The same after Holm's correction over the tasks.
        verdict: Is the updated model better or worse than the old one, at the document's level, after correction?
        slices: Where it regresses most comes first.
        against_new: For compatibility models: held against the plain update.
        inheritance: For compatibility models: which errors of the old model come back.
        nfr_by_chance: Where items were answered several times, the NFR that two equal models would have by luck.
        measures: What an answer takes: length, tokens, cost, latency, where the logs tell.
    """

    label: str
    role: Role
    accuracy: Estimate
    change: Estimate
    counts: dict[str, int]
    rates: dict[str, Estimate]
    p_value: float
    p_adjusted: float
    verdict: Verdict
    slices: list[Slice] = field(default_factory=list)
    against_new: AgainstNew | None = None
    inheritance: Inheritance | None = None
    nfr_by_chance: float | None = None
    measures: list[Measure] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Flip:
    """An item on which some updated model does otherwise than the old one.

    Args:
        outcomes: Per updated model. Kind ``correct``: ``both_right``, ``positive``, ``both_wrong``, ``negative``. Kind
            ``score``: ``improved``, ``unchanged``, ``regressed``.
        prompt: What the models were asked; None if the log does not say.
        target: The right answer as text; several are joined by " | ". Choices are shown by their text if known.
        answers: Per model, the answer as text; None if the log does not say.
        correct: Per model; None for kind ``score``.
        scores: Per model: similarity to the reference; None for kind ``correct``.
        choices: Multiple choice: the choices as text; empty if unknown.
        columns: The item's further columns, as text.
        severity: What flips are sorted by, worst first (:attr:`TaskResult.flips`).
        inherited: Per compatibility model that makes an error again which old made and new had shed: ``same``,
            ``other`` or ``unknown`` (:class:`InheritedItem`).
        own: Per model, the columns of its own log (grades, reasoning, tokens, ...), as text.
        rates: Per model, the rate of right answers, where the item was answered several times.
        noise: Whether the item flips by itself: runs of one and the same model answer it now right, now wrong.
    """

    id: str
    outcomes: dict[str, str]
    prompt: str | None
    target: str
    answers: dict[str, str | None]
    correct: dict[str, bool | None]
    scores: dict[str, float | None]
    choices: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    severity: float = 0.0
    inherited: dict[str, str] = field(default_factory=dict)
    own: dict[str, dict[str, str]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    noise: bool = False


@dataclass(frozen=True)
class TaskResult:
    """Everything about one task.

    Args:
        name: Name of the task (with its filter, for lm-eval tasks that have several).
        metric: What an answer was judged by: ``acc``, ``exact_match``, ``rouge1``, ...
        kind: ``correct``: answers are right or wrong. ``score``: they have a similarity to the reference.
        items: Number of items compared.
        accuracy_old: The old model's accuracy (mean score for kind ``score``).
        updates: The new model first, then the compatibility models, in the order of :attr:`Document.models`.
        flips: The worst first: negative flips of the new model, then of compatibility models, then errors of the old
            model that come back, then positive flips; within those by how far the scores or the likelihoods moved.
            Cut off at the document's ``max_flips``.
        flips_total: Number of flips before the cut.
        left_out: Items not compared because a side lacks them, has no judged answer to them or has changed them
            (``--missing drop``).
        missing: Per model, how many items have no judged answer, by kind: ``no answer``, ``no score``, ``error``,
            ``absent``, ``changed``; models without any are left out.
        reworded: Per model, how many prompts differ from the old model's (``--ignore-prompts``).
        doubt: Why right and wrong of this task cannot be trusted; empty if nothing speaks against it.
        chance: How often a guess is right, where the number of choices is known.
        runs: The most answers that a model gave to an item.
        flaky: Per model, the share of items that it answers now right, now wrong; empty with one answer an item.
        tasks: Of a total, the names of its tasks.
    """

    name: str
    metric: str
    kind: Literal["correct", "score"]
    items: int
    accuracy_old: Estimate
    updates: list[Update]
    flips: list[Flip] = field(default_factory=list)
    flips_total: int = 0
    left_out: int = 0
    missing: dict[str, dict[str, int]] = field(default_factory=dict)
    reworded: dict[str, int] = field(default_factory=dict)
    doubt: str = ""
    chance: float | None = None
    runs: int = 1
    flaky: dict[str, float] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)


def worst_verdict(verdicts: Iterable[GateVerdict]) -> GateVerdict:
    """``fail`` if there is one, else ``too little data`` if there is one, else ``pass``."""
    found = set(verdicts)
    return "fail" if "fail" in found else "too little data" if "too little data" in found else "pass"


@dataclass(frozen=True)
class GateCheck:
    """One limit held against one updated model.

    Args:
        rule: ``max_nfr``, ``max_regression``, ``min_accuracy_gain`` or ``baseline``.
        limit: The limit: a fraction; a difference of mean scores is in the unit of the scores.
        estimate: What is limited, with the one-sided bound that decides in ``high`` (upper) or ``low`` (lower).
        verdict: ``pass``: the bound keeps the limit. ``fail``: the opposite one-sided bound breaks it. Else
            ``too little data``.
        message: One sentence for a reader.
        noise_floor: Negative flip rate of re-running the same model, where it was measured (``muscle-hf noise``).
        items_needed: With too little data, about how many items would decide if it is as measured; None if unknown.
    """

    rule: str
    task: str
    label: str
    limit: float
    estimate: Estimate
    verdict: GateVerdict
    message: str
    noise_floor: float | None = None
    kind: Literal["correct", "score"] = "correct"
    items_needed: int | None = None


@dataclass(frozen=True)
class Gate:
    """All checks and what follows from them.

    Args:
        verdict: ``fail`` if any check fails, else ``too little data`` if any has too little, else ``pass``.
        checks: In the order of tasks and models.
        budget: File that the limits came from, if any.
    """

    verdict: GateVerdict
    checks: list[GateCheck]
    budget: str | None = None

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 too little data."""
        return EXIT_CODES[self.verdict]

    @property
    def by_candidate(self) -> dict[str, GateVerdict]:
        """The verdict of each model that was judged."""
        labels = dict.fromkeys(check.label for check in self.checks)
        return {label: worst_verdict(c.verdict for c in self.checks if c.label == label) for label in labels}


@dataclass(frozen=True)
class NoiseFloor:
    """What re-running the same model changes on one task (other batch size, dtype, machine, ...).

    Args:
        runs: Number of runs; all pairs of them are compared.
        nfr: Mean negative flip rate over ordered pairs of runs: the NFR of an update that changes nothing.
        nfr_max: The largest negative flip rate of a pair.
        answers_changed: Mean share of items whose answer differs between two runs; nan if answers are unknown.
        flaky: Ids of the items that flip by themselves.
    """

    task: str
    runs: int
    items: int
    nfr: Estimate
    nfr_max: float
    answers_changed: float
    flaky: list[str] = field(default_factory=list)


@dataclass(frozen=True, repr=False)
class Document:
    """A whole comparison.

    Args:
        models: Old, new, then compatibility models.
        tasks: One result for each task.
        totals: Means over the tasks whose answers are right or wrong, and over those with scores of one metric, every
            task weighing the same: the same numbers as of a task. Empty with a single task.
        gate: None if no limits were given.
        noise: Noise floors, where measured.
        warnings: Sentences a reader must see (items left out, prompts that could not be verified, ...).
        options: What the comparison was asked for: ``level``, ``epsilon``, ``slices``, ``cluster``, ``max_flips``, ...
        meta: ``version`` of the package and the like.
    """

    models: list[Model]
    tasks: list[TaskResult]
    totals: list[TaskResult] = field(default_factory=list)
    gate: Gate | None = None
    noise: list[NoiseFloor] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        tasks = ", ".join(f"{task.name!r} ({task.items} items)" for task in self.tasks)
        gate = "" if self.gate is None else f"; gate: {self.gate.verdict}"
        return f"<Document of {[model.label for model in self.models]}: {tasks}{gate}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: a row for each task and updated model."""
        rows: list[tuple[str, ...]] = [("task", "model", "old", "new", "change", "NFR", "verdict")]
        for task in (*self.totals, *self.tasks):
            for update in task.updates:
                nfr = update.rates.get("nfr") or update.rates.get("nfr_smooth")
                numbers = (task.accuracy_old.value, update.accuracy.value, update.change.value)
                cells = [*(f"{number:.3f}" for number in numbers), f"{nfr.value:.3f}" if nfr else ""]
                rows.append((task.name, update.label, *cells, update.verdict))
        lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        gate = "" if self.gate is None else f"<p>Gate: {escape(self.gate.verdict)}</p>"
        return f"<table>{lines}</table>{gate}"

    def _fields(self) -> dict[str, Any]:
        data = {"schema_version": SCHEMA_VERSION, **{entry.name: getattr(self, entry.name) for entry in fields(self)}}
        if self.gate is not None:
            data["gate"] = {**plain(self.gate), "exit_code": self.gate.exit_code}
        return data

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data: ``schema_version`` and all fields; ``gate`` also has ``exit_code``."""
        return plain(self._fields())

    def to_json(self) -> str:
        """What ``--json`` writes: :meth:`to_dict` on one line."""
        try:
            import orjson

            # It writes dataclasses as they are and nan as null, 30 times as fast.
            return orjson.dumps(self._fields(), option=orjson.OPT_NON_STR_KEYS).decode()
        except (ImportError, TypeError):  # TypeError: text that is not Unicode (lone surrogates)
            return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """JSON-ready data: dataclasses become tables, nan and infinities None."""
    if is_dataclass(value):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def with_estimates(value: Any) -> Any:
    """:func:`plain` data in which estimates are such again, and their null nan."""
    if isinstance(value, (list, tuple)):
        return [with_estimates(entry) for entry in value]
    if not isinstance(value, Mapping):
        return value
    ends = {"value", "low", "high"}
    if ends <= value.keys():
        return Estimate(**{**value, **{name: math.nan for name in ends if value[name] is None}})
    return {name: with_estimates(part) for name, part in value.items()}
