"""The recipes that travel with the package: their names, their settings, and their figures beside published ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from muscle_hf.bundled import bundled
from muscle_hf.errors import MuscleError
from muscle_hf.files import write_json, write_text
from muscle_hf.pipeline.config import FIGURES, RunSettings
from muscle_hf.words import did_you_mean

if TYPE_CHECKING:
    from muscle_hf.evaluation.predictions import Prediction
    from muscle_hf.pipeline.table import Result


def recipes() -> dict[str, Path]:
    """The file of each recipe by its name, such as ``paper/phi_1_to_1.5/piqa``."""
    root = bundled("recipes")
    files = sorted(root.rglob("*.yaml"))
    # What other files include says nothing about where its results go.
    whole = [file for file in files if "\noutput_dir:" in "\n" + file.read_text(encoding="utf-8")]
    return {file.relative_to(root).with_suffix("").as_posix(): file for file in whole}


def title_of(file: Path) -> str:
    """What the first sentence of a recipe says that it is."""
    lines = file.read_text(encoding="utf-8").splitlines()
    said = takewhile(lambda line: line.startswith("# ") and not line.startswith("#  "), lines)
    return " ".join(line[2:] for line in said).rstrip(":")


def find_recipe(name: str) -> Path:
    """A settings file by its path, or a recipe by its name."""
    if Path(name).is_file():
        return Path(name)
    known = recipes()
    short = name.removeprefix("recipes/").removesuffix(".yaml")
    if short not in known:
        raise MuscleError(
            f"{name} is neither a file nor a recipe; {did_you_mean(short, known, '`muscle-hf recipes` lists them')}"
        )
    return known[short]


def accelerate_config(name: str) -> Path:
    """An accelerate configuration by its path, or one of those in ``recipes/accelerate`` by its name."""
    if Path(name).is_file():
        return Path(name)
    known = {file.stem: file for file in (bundled("recipes") / "accelerate").glob("*.yaml")}
    if name not in known:
        raise MuscleError(f"there is no accelerate configuration {name!r}; {did_you_mean(name, known)}")
    return known[name]


# ---- Measured against published ----


def compare_with_published(
    published: Mapping[str, Any] | None, result: Result, predictions: Mapping[str, Sequence[Prediction]]
) -> dict[str, dict[str, float | None]]:
    """A run's figures beside published ones, in percent and percentage points: of :data:`FIGURES` -> ``published`` and
    ``measured``, of those that either side has."""
    measured = {name: 100 * value for name, value in _figures(result, predictions).items()}
    if measured.get("nfr") and "nfr_change" in measured:
        measured["nfr_change_percent"] = 100 * measured["nfr_change"] / measured["nfr"]
    both = {name: {"published": (published or {}).get(name), "measured": measured.get(name)} for name in FIGURES}
    return {name: values for name, values in both.items() if any(value is not None for value in values.values())}


def _figures(result: Result, predictions: Mapping[str, Sequence[Prediction]]) -> dict[str, float]:
    from muscle_hf.pipeline.table import COMPAT, NEW, OLD

    rows = {row.model: row for row in result.rows}
    figures = {"v1": rows[OLD].quality, "v2": rows[NEW].quality, "nfr": rows[NEW].nfr}
    if COMPAT in rows:
        figures |= {
            "muscle": rows[COMPAT].quality,
            "nfr_change": rows[COMPAT].nfr - rows[NEW].nfr,
            "pfr_change": rows[COMPAT].pfr - rows[NEW].pfr,
            "accuracy_change": rows[COMPAT].quality - rows[NEW].quality,
        }
        if predictions[OLD][0].correct is None:
            from muscle_hf.metrics.smooth import smooth_flip_metrics

            names = OLD, NEW, COMPAT
            old, new, compat = ([cast("float", answer.score) for answer in predictions[name]] for name in names)
            smooth = smooth_flip_metrics(old, new, compat_scores=compat)
            figures |= {"gain_change": smooth["delta_m_g_c"], "loss_change": smooth["delta_m_r_c"]}
    return {name: value for name, value in figures.items() if not math.isnan(value)}


def reproduction_table(
    figures: Mapping[str, Mapping[str, float | None]], settings: RunSettings, result: Result
) -> str:
    """Published and measured figures as Markdown."""
    source = "" if settings.published is None else f" ({settings.published.get('source')})"
    rows = [f"| Figure | Published{source} | Measured | Difference |", "| --- | ---: | ---: | ---: |"]
    for name, values in figures.items():
        cells = ["" if value is None else f"{value:.2f}" for value in values.values()]
        measured, published = values["measured"], values["published"]
        difference = "" if measured is None or published is None else f"{measured - published:+.2f}"
        rows.append(f"| {' | '.join([name, *cells, difference])} |")
    models = f"{settings.old.base} to {settings.new.base}, {result.task}, {result.items} test items"
    return f"{models}. Percent and percentage points.\n\n" + "\n".join(rows) + "\n"


def write_reproduction(folder: Path, figures: Mapping[str, Mapping[str, float | None]], table: str) -> Path:
    """Write measured against published figures beside a run's result, as JSON and Markdown; the path of the latter."""
    write_json(folder / "reproduction.json", figures)
    return write_text(folder / "reproduction.md", table)
