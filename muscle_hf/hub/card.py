"""The model card: front matter and body, rendered from the files beside the weights, never by editing a card."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from jinja2 import Template, UndefinedError
from markupsafe import Markup

from muscle_hf.bundled import bundled
from muscle_hf.errors import MuscleError
from muscle_hf.files import write_text
from muscle_hf.hub.body import Card, number
from muscle_hf.hub.state import CardState
from muscle_hf.metrics.intervals import Estimate
from muscle_hf.report import charts, wording
from muscle_hf.report.inheritance import ENOUGH, counted
from muscle_hf.report.markup import markdown_environment
from muscle_hf.report.text import one_line, plain

CARD_FILE = "README.md"
BACKUP_FILE = "README.md.bak"
CURVES_FILE = "card_curves.svg"
TAGS = ("muscle-hf", "model-update")
# Says whose work a card is: one without it was written by hand or by another tool.
MARKER = "<!-- Rendered by muscle-hf from the JSON files beside it; edits here are overwritten. -->"
_LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,40}")
_PIPELINES = {
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
}
# Of the adapter; the plain update's get the suffix `_v2`.
_INDEXED = ("nfr", "nfr_mc", "pfr", "nfr_smooth", "pfr_smooth")
# Data sets whose pages on the Hub collect results -> its task, configuration, split and number of items.
_BENCHMARKS = {
    "openai/gsm8k": ("gsm8k", "main", "test", 1319),
    "TIGER-Lab/MMLU-Pro": ("mmlu_pro", "default", "test", 12032),
    "Idavidrein/gpqa": ("gpqa_diamond", "gpqa_diamond", "train", 198),
}


@dataclass(frozen=True)
class Rendered:
    """A card, the text of README.md, and what goes out with it: the pictures that it shows, file name -> SVG, and the
    results that pages of benchmarks read (:func:`benchmark_results`)."""

    text: str
    pictures: dict[str, str]
    results: dict[str, str]


def render_card(
    folder: str | os.PathLike,
    repo_id: str | None = None,
    *,
    provenance: dict[str, Any] | None = None,
    state: CardState | None = None,
) -> Rendered:
    """Render the card of a saved compatibility adapter from the files in its folder: adapter and provenance; card
    state and metrics where there are some.

    Without ``repo_id`` the card holds a placeholder; ``provenance`` and ``state`` stand in for the files' where they
    go out changed.
    """
    card = Card.read(folder, repo_id)
    card = replace(card, provenance=provenance or card.provenance, state=state or card.state)
    try:
        pictures, results = _pictures(card), benchmark_results(card)
        front_matter = Markup(card_data(card).to_yaml(line_break="\n").strip())
        text = _template().render(card=card, front_matter=front_matter, marker=Markup(MARKER), pictures=pictures)
    except (AttributeError, KeyError, TypeError, UndefinedError) as error:  # a fetched file may hold anything
        raise MuscleError(f"a file of the card in {folder} is damaged ({type(error).__name__}: {error})") from error
    return Rendered(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", pictures, results)


def write_card(folder: str | os.PathLike, repo_id: str | None = None) -> Path:
    """Render the card into its folder, pictures first, and give the path of README.md; a card that stands there is
    replaced, or kept as ``README.md.bak`` where it was written by hand or by another tool. Errors are those of
    :func:`render_card`; what stood there is then untouched."""
    rendered = render_card(folder, repo_id)
    present = Path(folder, CARD_FILE)
    if present.is_file() and not is_ours(present.read_text(encoding="utf-8", errors="replace")):
        os.replace(present, Path(folder, BACKUP_FILE))
    for name, content in {**rendered.pictures, CARD_FILE: rendered.text}.items():
        write_text(Path(folder, name), content)
    return Path(folder, CARD_FILE)


def is_ours(text: str) -> bool:
    """Whether a card was rendered here, rather than written by hand or by another tool."""
    return MARKER in text


def card_data(card: Card) -> ModelCardData:
    """The card's front matter."""
    state, license_ = card.state, card.license
    license_id, license_name = license_.identifier, None
    if license_id is not None and not _LICENSE_ID.fullmatch(license_id):
        license_id, license_name = "other", plain(license_id)
    elif license_id == "other" and license_.conflict:
        license_name = "terms-of-both-bases"
    extra: dict[str, Any] = {"base_model_relation": "adapter"}
    local = not card.provenance["new"]["base"]["on_hub"]
    if local:
        extra = {"new_model": plain(card.base_name)}
    if state.emissions_kg is not None:
        extra["co2_eq_emissions"] = {
            "emissions": round(1000 * state.emissions_kg, 3),
            "source": "codecarbon",
            "training_type": "fine-tuning",
            "hardware_used": plain(state.hardware or "unknown"),
        }
    old = card.provenance["old"]["base"]
    results = eval_results(card)
    return ModelCardData(
        library_name="peft",
        # A name that is no repository would send a reader, and any tool, to somebody else's.
        base_model=None if local else plain(card.base_name),
        pipeline_tag=_PIPELINES.get(str(card.config.get("task_type"))),
        tags=[*TAGS, *(["lora"] if card.config.get("peft_type") == "LORA" else []), *map(plain, state.tags)],
        language=[plain(code) for code in state.language] or None,
        license=license_id,
        license_name=license_name,
        datasets=[plain(name) for name in state.datasets] or None,
        eval_results=results or None,
        model_name=plain(card.title) if results else None,
        old_model=plain(old["name"] or "unknown"),
        **extra,
    )


def eval_results(card: Card) -> list[EvalResult]:
    """The rates of every task for the model-index: of the adapter, and with the suffix ``_v2`` of the plain update."""
    return [
        EvalResult(
            task_type=_PIPELINES.get(str(card.config.get("task_type")), "text-generation"),
            dataset_name=name,
            metric_type=metric,
            metric_name=label,
            metric_value=round(value, 6),
            **dataset,
        )
        for name, dataset, figures in _measured(card)
        for metric, label, value in figures
        if value == value
    ]


def benchmark_results(card: Card) -> dict[str, str]:
    """The adapter's accuracies as the Hub's benchmarks collect them, ``.eval_results/muscle_NAME.yaml`` -> its
    content; of a part, or another split, there is none."""
    found = {}
    for task in _trusted(card):
        dataset = _data_set(card, task["name"])
        name, *known = _BENCHMARKS.get(dataset["dataset_type"], (None,))
        asked = [dataset.get("dataset_config", "default"), dataset.get("dataset_split"), task["items"]]
        for update in task["updates"]:
            if name is None or asked != known or task["kind"] != "correct" or update["role"] != "compat":
                continue
            flips, old = update["rates"]["nfr"].value, card.provenance["old"]["base"]["name"]
            entry = EvalResultEntry(
                dataset["dataset_type"],
                name,
                round(100 * update["accuracy"].value, 2),
                dataset_revision=dataset.get("dataset_revision"),
                notes=f"negative flips against {plain(old or 'the old model')}: {100 * flips:.2f} % of the items",
            )
            content = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)
            found[f".eval_results/muscle_{name}.yaml"] = content
    return found


def _measured(card: Card) -> Iterator[tuple[str, dict[str, Any], list[tuple[str, str, float]]]]:
    """Name of each task, its data set, and type, name and value of each figure."""
    taken = []
    for task in _trusted(card):
        name = plain(task["name"])
        dataset = _data_set(card, task["name"])
        if dataset in taken:  # a model-index would put the figures of two tasks under one of them
            dataset = {"dataset_type": name}
        taken.append(dataset)
        quality = "accuracy" if task["kind"] == "correct" else plain(task["metric"])
        figures = [(f"{quality}_v1", f"{quality} (old model)", task["accuracy_old"])]
        for update in sorted(task["updates"], key=lambda update: update["role"]):
            suffix, owner = ("_v2", " (plain update)") if update["role"] == "new" else ("", "")
            figures.append((quality + suffix, quality + owner, update["accuracy"]))
            rates = [rate for rate in _INDEXED if rate in update["rates"]]
            figures += [(rate + suffix, wording.measure(rate).name + owner, update["rates"][rate]) for rate in rates]
        yield name, dataset, [(metric, label, found.value) for metric, label, found in figures]


def _trusted(card: Card) -> list[Any]:
    """The tasks whose right and wrong nothing speaks against: of the others programs learn no figures."""
    return [task for task in card.tasks if not task.get("doubt")]


def _data_set(card: Card, task: str) -> dict[str, Any]:
    """A task's data set in the model-index: what the answers say; else the publisher's only one; else the task."""
    origins = [origin for model in card.comparison["models"] for origin in model.get("origins") or []]
    said = [origin.get("data") for origin in origins if isinstance(origin, dict)]
    said = [data for data in said if isinstance(data, dict) and data.get("task") == task and data.get("path")]
    if said and all(data == said[0] for data in said):
        fields = {"type": "path", "config": "config", "revision": "revision", "split": "split"}
        return {f"dataset_{name}": plain(said[0][key]) for name, key in fields.items() if said[0].get(key)}
    return {"dataset_type": plain(card.state.datasets[0] if len(card.state.datasets) == 1 else task)}


def _pictures(card: Card) -> dict[str, str]:
    pictures = {}
    for index, task in enumerate(card.comparison.get("tasks", [])):
        if task["kind"] != "correct":
            continue
        updates = sorted(task["updates"], key=lambda update: update["role"] == "compat")
        titles = {"new": "plain update", "compat": "with this adapter"}
        named = [(titles[update["role"]], update["counts"]) for update in updates]
        pictures[f"card_quadrants_{index + 1}.svg"] = charts.standalone(
            "How answers change with the update",
            [(title, charts.quadrants("the old model", title, counts)) for title, counts in named],
        )
    if drawn := [(title, charts.curves(title, lines)) for title, lines in _curves(card.state.history)]:
        pictures[CURVES_FILE] = charts.standalone("Training curves", drawn)
    return pictures


def _curves(history: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, list[charts.Line]]]:
    """Loss, and KL to the old and the new model, where enough of them was logged to draw a line."""
    for title, series in (
        ("loss", (("loss", "training"), ("eval_loss", "evaluation"))),
        ("KL on the evaluation set", (("eval_kl_old", "to the old model"), ("eval_kl_new", "to the new model"))),
    ):
        lines = [(label, [(x["step"], x[key]) for x in history if key in x and "step" in x]) for key, label in series]
        drawn: list[charts.Line] = [(label, points) for label, points in lines if len(points) > 1]
        if drawn:
            yield title, drawn


@functools.cache
def _template() -> Template:
    environment = markdown_environment()
    environment.filters |= {"literal": literal, "word": _shell_word, "plain": plain, "number": number}
    environment.filters |= {"interval": _interval, "counted": _counted}
    names = ("percent", "points", "decimal", "signed_decimal", "measure", "COUNTS")
    environment.globals |= {"ENOUGH": ENOUGH, **{name: getattr(wording, name) for name in names}}
    return environment.from_string((bundled("model_cards") / "template.md").read_text(encoding="utf-8"))


def _interval(estimate: Estimate | None, show: wording.Show = wording.percent) -> Markup:
    return Markup(wording.with_interval(estimate, show) if estimate else "")


def _counted(rate: Estimate | None) -> Markup:
    return Markup(counted(rate))


def literal(value: str) -> Markup:
    """A string as a Python literal that can stand in a fenced block of code."""
    text = json.dumps(one_line(value, 300), ensure_ascii=False)
    # A backtick could close the fence, a dollar or backslash sign is safe within the quotes.
    return Markup(text.replace("`", "\\u0060"))


def _shell_word(value: str) -> Markup:
    return Markup(shlex.quote(one_line(value, 300).replace("`", "")))
