"""What a card's body shows: facts of one adapter, turned into rows that the template lays out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muscle_hf.errors import MuscleError
from muscle_hf.hub.licenses import License, inherited_license
from muscle_hf.hub.logged import LoggedFlips, logged_flips
from muscle_hf.hub.measured import headline, level, task_rows
from muscle_hf.hub.origins import check_origins
from muscle_hf.hub.serving import serving_problems
from muscle_hf.hub.state import CardState, load_metrics, provenance_in
from muscle_hf.hub.text import Markdown, code, literal, markdown, plain, shell_word
from muscle_hf.report.wording import decimal, percent

ADAPTER_CONFIG = "adapter_config.json"
REPORT_FILE = "report.html"
_AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}
# Of the LoRA's configuration, what a reader wants to know.
_LORA_SETTINGS = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "modules_to_save")
_PARENTS = {"new": "dial, t = 0: v2's task adapter", "compat": "dial, t = 1: compatibility adapter"}
# Settings that say how a run was watched and kept rather than what was trained.
_HOUSEKEEPING = frozenset({"disable_tqdm", "do_train", "do_eval", "do_predict", "use_cpu", "report_to", "push_to_hub"})
_HOUSEKEEPING_KINDS = ("logging_", "log_", "save_", "hub_", "dataloader_", "trackio", "debug")


@dataclass(frozen=True)
class Card:
    """Everything known of one adapter.

    Args:
        provenance: Content of ``muscle_provenance.json``.
        config: Content of ``adapter_config.json``.
        state: Content of ``muscle_card.json``.
        comparison: Flips of exactly these weights, if measured.
        repo_id: Where it is published.
        has_report: Whether an HTML report lies beside it.
    """

    provenance: dict[str, Any]
    config: dict[str, Any]
    state: CardState
    comparison: dict[str, Any] | None
    repo_id: str | None
    has_report: bool

    @classmethod
    def read(cls, folder: str | os.PathLike, repo_id: str | None = None) -> Card:
        """Read a saved adapter's folder.

        Raises:
            MuscleError: It holds no compatibility adapter.
        """
        provenance = provenance_in(folder)
        config_file = Path(folder, ADAPTER_CONFIG)
        if not config_file.is_file():
            raise MuscleError(f"{folder} has no {ADAPTER_CONFIG}: it is not the folder of a saved adapter")
        return cls(
            provenance=provenance,
            config=json.loads(config_file.read_text(encoding="utf-8")),
            state=CardState.load(folder),
            comparison=load_metrics(folder, provenance.get("adapter_sha256")),
            repo_id=repo_id,
            has_report=Path(folder, REPORT_FILE).is_file(),
        )

    @property
    def unverified(self) -> list[str]:
        """The models of the comparison whose answers do not say what gave them.

        Raises:
            MismatchError: Some were given by others than the provenance names.
        """
        return [] if self.comparison is None else check_origins(self.comparison, self.provenance)

    @property
    def base_name(self) -> str:
        """The new base's public name."""
        return self.provenance["new"]["base"]["name"] or "the new base"

    @property
    def base_is_local(self) -> bool:
        """Whether the new base was loaded from a folder: then its name is no repository's."""
        return not self.provenance["new"]["base"]["on_hub"]

    @property
    def task_type(self) -> str:
        """PEFT's name of the kind of task."""
        return str(self.config.get("task_type"))

    @property
    def title(self) -> str:
        """Headline of the card."""
        if self.state.title:
            return self.state.title
        if self.repo_id:
            return self.repo_id.rsplit("/", 1)[-1]
        return f"{self.provenance['old']['base']['name']} → {self.base_name}: compatibility adapter"

    @property
    def license(self) -> License:
        """What the bases' licences leave."""
        return inherited_license(self.state.license_old, self.state.license_new, self.state.license)


def card_context(card: Card, picture_names: list[str], curves_file: str) -> dict[str, Any]:
    """The template's variables. Plain strings are escaped by the template; :class:`Markdown` is not.

    Args:
        card: The adapter.
        picture_names: Pictures that exist, the quadrants in the order of the tasks.
        curves_file: Name of the one that shows the training curves.
    """
    provenance, state = card.provenance, card.state
    new = provenance["new"]["base"]
    revision = new["revision"]
    tasks = (card.comparison or {}).get("tasks", [])
    base = f"path/to/{card.base_name}" if card.base_is_local else card.base_name
    repo = card.repo_id or "USER/REPO"
    history_keys = sorted({key for entry in state.history for key in entry})
    return {
        "title": card.title,
        "summary": state.summary or _summary(card),
        "headlines": [line for task in tasks if (line := headline(task))],
        "old": _model_row(provenance["old"]),
        "new": _model_row(provenance["new"]),
        "base_is_local": card.base_is_local,
        "base_note": state.base_note,
        "repo_literal": literal(repo),
        "repo_word": shell_word(repo),
        "base_literal": literal(base),
        "base_word": shell_word(base),
        "revision_argument": Markdown(f", revision={literal(revision)}" if revision else ""),
        "serve_revision": Markdown(f" --revision {shell_word(revision)}" if revision else ""),
        "auto_class": _AUTO_CLASSES.get(card.task_type, "AutoModelForCausalLM"),
        "generates": card.task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM"),
        "serving_problems": serving_problems(card.config),
        "max_lora_rank": _next_rank(card.config),
        "level": level(tasks),
        "kinds": {task["kind"] for task in tasks},
        "tasks": [task_rows(task, picture_names, index) for index, task in enumerate(tasks)],
        "logged": [] if tasks else [_logged(flips) for flips in logged_flips(provenance["metrics"])],
        "unverified": ", ".join(markdown(label, 60) for label in card.unverified),
        "audited": any(update.get("inheritance") for task in tasks for update in task["updates"]),
        "warnings": (card.comparison or {}).get("warnings", []),
        "has_report": card.has_report,
        "examples": [{name: markdown(value, 300) for name, value in row.items()} for row in state.examples],
        "dial": _dial(provenance.get("dial")),
        "objective": [(_words(name), code(value)) for name, value in provenance["objective"].items()],
        "other_mask": provenance["objective"].get("mask") != "student_wrong",
        "from_old": provenance["training"].get("start_from") == "old",
        "data": list(_data_rows(card)),
        "settings": list(_setting_rows(card)),
        "curves": Markdown(curves_file) if curves_file in picture_names else None,
        "curves_text": ", ".join(
            key for key in history_keys if key in ("loss", "eval_loss", "eval_kl_old", "eval_kl_new")
        ),
        "final_metrics": [(code(name), code(_number(value))) for name, value in sorted(provenance["metrics"].items())],
        "hashes": list(_hash_rows(provenance)),
        "created": provenance.get("created") or "at an unknown time",
        "packages": ", ".join(f"{name} {version}" for name, version in provenance["packages"].items()),
        "made_by": code(state.made_by) if state.made_by else None,
        "notes": state.notes,
        "license_text": card.license.explanation,
        "environment": list(_environment_rows(state)),
    }


def _dial(dial: Mapping[str, Any] | None) -> Markdown | None:
    """Of a point between v2's adapter and a compatibility adapter (:mod:`muscle_hf.dial`): where, and how chosen."""
    if not dial:
        return None
    choice, t, chosen = dial.get("choice"), dial["t"], ""
    if choice:
        rule = "by hand" if choice["rule"] == "choose" else f"by the rule {choice['rule']}"
        chosen = (
            f"Chosen {markdown(rule)} on {choice['items']} items of {markdown(choice['task'], 80)} (split "
            f"{markdown(choice['split'], 80)}). Figures on those items would be too good."
        )
    if t in (0, 1):
        whole = "the compatibility adapter" if t else "v2's task adapter"
        words = f"These weights are {whole} itself, one end of a dial between the two."
    elif dial["new"] is None:
        words = (
            f"These weights are a point on a dial: the delta of each layer is {t:g} times that of the compatibility "
            "adapter, whose training is described here."
        )
    else:
        words = (
            f"These weights are a point between two adapters: the delta of each layer is {1 - t:g} times that of v2's "
            f"task adapter plus {t:g} times that of the compatibility adapter, whose training is described here."
        )
    return Markdown(f"{words} {chosen}".strip())


def _summary(card: Card) -> Markdown:
    old, new = (code(card.provenance[role]["base"]["name"]) for role in ("old", "new"))
    task = f" for {markdown(card.state.task)}" if card.state.task else ""
    return Markdown(
        f"A **compatibility adapter**{task}: a LoRA on {new}, trained so that the update from {old} keeps "
        "what the old model gets right."
    )


def _logged(flips: LoggedFlips) -> dict[str, Any]:
    rows = []
    for rate, name in (("acc", "accuracy"), ("score", "score"), ("nfr", "NFR"), ("nfr_mc", "NFR_mc"), ("pfr", "PFR")):
        if rate in flips.compat:
            show = decimal if rate == "score" else percent
            values = {role: show(getattr(flips, role).get(rate)) for role in ("old", "new", "compat")}
            rows.append({"name": name, **values})
    return {"name": plain(flips.name), "rows": rows}


def _model_row(description: Mapping[str, Any]) -> dict[str, Markdown]:
    base, adapter = description["base"], description["adapter"]
    named = (adapter or {}).get("name")
    shown = code(named) if named else Markdown("yes" if adapter else "merged into the base")
    return {
        "base": code(base["name"]),
        "revision": code(base["revision"])
        if base["revision"]
        else Markdown("unknown" if base["on_hub"] else "local copy"),
        "adapter": shown,
    }


def _data_rows(card: Card) -> Iterable[tuple[Any, Any]]:
    if card.state.datasets:
        yield "data sets", Markdown(", ".join(code(name) for name in card.state.datasets))
    for split, description in card.provenance["data"].items():
        named = description if "class" not in description else {"": description}
        for part, facts in named.items():
            rows = facts.get("rows")
            amount = f"{rows} rows, " if rows is not None else ""
            digest = f"SHA-256 {code(facts['sha256'][:16])}…" if facts.get("sha256") else "not hashed"
            if facts.get("sha256") and facts.get("rows_hashed") != rows:
                digest += f" over {facts['rows_hashed']} of them"
            yield f"{split} {part}".strip(), Markdown(amount + digest)


def _setting_rows(card: Card) -> Iterable[tuple[Any, Any]]:
    for name in _LORA_SETTINGS:
        value = card.config.get(name)
        if value not in (None, False, 0, 0.0, [], {}) or name == "r":
            text = ", ".join(sorted(map(str, value))) if isinstance(value, list) else value
            yield code(name), code(text)
    for name, value in card.provenance["training"].items():
        told = name not in _HOUSEKEEPING and not name.startswith(_HOUSEKEEPING_KINDS)
        if told and value not in ([], {}, None) and not isinstance(value, dict):
            yield code(name), code(_number(value))


def _hash_rows(provenance: Mapping[str, Any]) -> Iterable[tuple[str, Markdown]]:
    yield "this adapter", code(provenance.get("adapter_sha256"))
    if provenance.get("adapter_file_sha256"):
        yield "its file, adapter_model.safetensors", code(provenance["adapter_file_sha256"])
    for role, name in (("new", "new"), ("old", "old")):
        for part in ("base", "adapter"):
            description = provenance[role][part]
            if description:
                yield f"{name} {part if part == 'base' else 'task adapter'}", code(description["sha256"])
    for key, name in _PARENTS.items():
        if (provenance.get("dial") or {}).get(key):
            yield name, code(provenance["dial"][key]["sha256"])
    if provenance.get("tokenizer"):
        yield f"vocabulary ({provenance['tokenizer']['tokens']} tokens)", code(provenance["tokenizer"]["sha256"])


def _environment_rows(state: CardState) -> Iterable[tuple[str, Any]]:
    if state.hardware:
        yield "hardware", state.hardware
    if state.train_seconds is not None:
        yield (
            "training time",
            f"{state.train_seconds:.0f} s" if state.train_seconds < 600 else f"{state.train_seconds / 3600:.2f} h",
        )
    if state.emissions_kg is not None:
        yield "emissions (codecarbon)", f"{1000 * state.emissions_kg:.3g} g CO2eq"


def _next_rank(config: Mapping[str, Any]) -> int:
    ranks = [config.get("r") or 1, *(config.get("rank_pattern") or {}).values()]
    needed = max(rank for rank in ranks if isinstance(rank, int))
    # Servers accept a few sizes only, the smallest of which is 8.
    return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= needed), needed)


def _words(name: str) -> str:
    return {"compatibility_weight": "lambda (weight of the compatibility loss)"}.get(name, name.replace("_", " "))


def _number(value: Any) -> Any:
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else plain(value)
