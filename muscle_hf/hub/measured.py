"""What a card says of the flips that were measured on a task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from muscle_hf.hub.state import worst_slices
from muscle_hf.hub.text import Markdown, markdown, plain
from muscle_hf.metrics import Estimate
from muscle_hf.report.inheritance import ENOUGH, counted
from muscle_hf.report.wording import COUNTS, decimal, measure, percent, points, signed_decimal, with_interval

_RATES = ("nfr", "nfr_mc", "pfr", "nfr_smooth", "pfr_smooth", "m_r", "m_g")
_SHOWN_SLICES = 5


def estimate(value: Any) -> Estimate:
    """An estimate read back from JSON, in which nan is null."""
    if isinstance(value, Estimate):
        return value
    content = {
        key: math.nan if entry is None and key in ("value", "low", "high") else entry for key, entry in value.items()
    }
    return Estimate(**content)


def _updates(task: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    by_role = {update["role"]: update for update in task["updates"]}
    return by_role["new"], by_role["compat"]


def headline(task: Mapping[str, Any]) -> Markdown | None:
    """One sentence on what the adapter changes; None without a comparison with the plain update."""
    new, compat = _updates(task)
    rate = "nfr" if "nfr" in new["rates"] else "nfr_smooth"
    before, after = (estimate(update["rates"][rate]) for update in (new, compat))
    against = compat.get("against_new")
    if not against:
        return None
    change = estimate(against["delta_nfr"])
    worse = "right before and wrong after the update" if rate == "nfr" else "worse after the update"
    quality = ""
    if task["kind"] == "correct":
        quality = f" Accuracy {' → '.join(percent(estimate(u['accuracy']).value) for u in (new, compat))}."
    sure = "" if against["verdict"] != "no difference shown" else " This difference may be chance."
    return Markdown(
        f"**{markdown(task['name'], 200)}**: {percent(before.value)} of {task['items']} items are {worse}; with this "
        f"adapter {percent(after.value)} (change {with_interval(change, points)}).{sure}{quality}"
    )


def level(tasks: list[Mapping[str, Any]]) -> str:
    """``95%``; empty without tasks."""
    if not tasks:
        return ""
    return f"{100 * estimate(tasks[0]['accuracy_old']).level:g}%"


def task_rows(task: Mapping[str, Any], picture_names: list[str], index: int) -> dict[str, Any]:
    """What the template shows of one task of a trimmed comparison.

    Args:
        task: The task, as JSON has it.
        picture_names: Pictures that exist.
        index: Its place among the tasks.
    """
    new, compat = _updates(task)
    against = compat.get("against_new") or {}
    scored = task["kind"] == "score"
    show, show_change = (decimal, signed_decimal) if scored else (percent, points)
    quality = f"mean {plain(task['metric'])}" if scored else "accuracy"
    rows = [
        {
            "name": quality,
            "old": with_interval(estimate(task["accuracy_old"]), show),
            "new": with_interval(estimate(new["accuracy"]), show),
            "compat": with_interval(estimate(compat["accuracy"]), show),
            "change": _change(against.get("delta_accuracy"), show_change),
        }
    ]
    for rate in _RATES:
        if rate in new["rates"] and rate in compat["rates"]:
            shape = percent if measure(rate).share else decimal
            delta = against.get("delta_nfr" if rate.startswith("nfr") and rate != "nfr_mc" else "delta_pfr")
            rows.append(
                {
                    "name": f"{measure(rate).symbol} ({measure(rate).name.lower()})",
                    "old": "–",
                    "new": with_interval(estimate(new["rates"][rate]), shape),
                    "compat": with_interval(estimate(compat["rates"][rate]), shape),
                    "change": _change(delta, points) if rate in ("nfr", "nfr_smooth", "pfr", "pfr_smooth") else "",
                }
            )
    picture = f"card_quadrants_{index + 1}.svg"
    return {
        "name": plain(task["name"]),
        "count": task["items"],
        "metric": "accuracy" if task["metric"] == "acc" else plain(task["metric"]),
        "rows": rows,
        "quadrants": [
            {"name": COUNTS.get(name, name), "new": count, "compat": compat["counts"].get(name, "")}
            for name, count in new["counts"].items()
        ],
        "picture": Markdown(picture) if picture in picture_names else None,
        "slices": _slices(new, compat),
        "inheritance": _inheritance(task, compat.get("inheritance")),
    }


def _inheritance(task: Mapping[str, Any], content: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The audit of inherited errors: rows for this adapter and its baselines, and the slices that inherit most."""
    if content is None:
        return None
    baselines = [(markdown(entry["label"], 60), entry["inheritance"]) for entry in task.get("baselines", [])]
    rows = [("this adapter", content), *baselines]
    scored, usual = task["kind"] == "score", content["usual"]
    alike = ""
    if usual and usual["total"] and usual["count"] == usual["total"]:
        alike = "Here all wrong answers are the old model's, as with two choices."
    elif usual and usual["total"]:
        alike = (
            f"Where both versions are wrong, they give the same answer in {with_interval(estimate(usual))} of "
            f"{usual['total']} items: so often do two versions err alike."
        )
    return {
        "shed": content["shed"],
        "scored": scored,
        "alike": alike,
        "rows": [
            {"name": name, **{key: _counted(entry[key]) for key in ("returned", "inherited", "fresh")}}
            for name, entry in rows
        ],
        "slices": [
            {
                "name": Markdown(f"{markdown(piece['column'], 60)} = {markdown(piece['value'], 80)}"),
                **{key: _counted(piece[key]) for key in ("returned", "inherited")},
            }
            for piece in content["slices"]
            if piece["returned"]["count"] and piece["returned"]["total"] >= ENOUGH
        ][:_SHOWN_SLICES],
    }


def _counted(rate: Any) -> str:
    return "–" if rate is None else counted(estimate(rate))


def _change(delta: Any, show: Any) -> str:
    return with_interval(estimate(delta), show) if delta else ""


def _slices(new: Mapping[str, Any], compat: Mapping[str, Any]) -> list[dict[str, Any]]:
    plain_update = {(entry["column"], entry["value"]): estimate(entry["nfr"]) for entry in new.get("slices", [])}
    rows = []
    for entry in worst_slices(compat.get("slices", []))[:_SHOWN_SLICES]:
        before = plain_update.get((entry["column"], entry["value"]))
        if not any(_or_zero(rate.value) for rate in (before, estimate(entry["nfr"])) if rate is not None):
            continue
        rows.append(
            {
                "name": Markdown(f"{markdown(entry['column'], 60)} = {markdown(entry['value'], 80)}"),
                "count": entry["items"],
                "new": with_interval(before) if before else "",
                "compat": with_interval(estimate(entry["nfr"])),
            }
        )
    return rows


def _or_zero(value: float) -> float:
    return value if math.isfinite(value) else 0.0
