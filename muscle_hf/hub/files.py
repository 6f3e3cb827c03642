"""Which files of an adapter's folder are published, and what is made of them on the way."""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub.utils import get_token

from muscle_hf.errors import MuscleError
from muscle_hf.files import parse_object
from muscle_hf.hub.body import ADAPTER_CONFIG, REPORT_FILE
from muscle_hf.hub.card import CARD_FILE, is_ours, render_card
from muscle_hf.hub.state import CARD_STATE_FILE, METRICS_FILE, CardState, load_metrics
from muscle_hf.record import PROVENANCE_FILE, WEIGHTS_FILE, check_weights, read_provenance

# Everything that is published or fetched, and nothing else: no checkpoints, optimizer states, pickles, caches or code.
ADAPTER_FILES = (ADAPTER_CONFIG, WEIGHTS_FILE, PROVENANCE_FILE)
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja"),
    *("additional_chat_templates/*.jinja", "preprocessor_config.json", "processor_config.json"),
)
CARD_FILES = (CARD_FILE, CARD_STATE_FILE, METRICS_FILE, REPORT_FILE, "card_*.svg", ".eval_results/*.yaml")
PUBLISHED = (*ADAPTER_FILES, *TOKENIZER_FILES, *CARD_FILES)
# Vocabularies hold any string at all: a path in one is a token.
_FREE_TEXT = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json", "*.model")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")
_TEXT_SUFFIXES = (".json", ".md", ".txt", ".html", ".svg", ".jinja", ".yaml")


@dataclass
class Parcel:
    """What one upload holds: path in the repository -> bytes, or the file that holds them; the files that are not
    published; and what the publisher should know, one sentence each."""

    contents: dict[str, bytes | Path]
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def is_published(path: str) -> bool:
    """Whether a file of this name belongs to a published adapter; one that leads out of its folder never does."""
    # `*` also matches a slash there: only as many parts as the pattern has.
    return any(fnmatch.fnmatchcase(path, pattern) and path.count("/") == pattern.count("/") for pattern in PUBLISHED)


def regular_files(folder: Path) -> dict[str, Path]:
    """The files of an adapter's folder that are published or copied, by their path in it. A link is refused, since
    what it shows may come from anywhere on this disk; those of the Hub's cache to its own blobs are taken."""
    home = folder.resolve()
    blobs = home.parents[1] / "blobs" if home.parent.name == "snapshots" else None
    found = {}
    for path in sorted(path for pattern in PUBLISHED for path in folder.glob(pattern)):
        name = path.relative_to(folder).as_posix()
        if not is_published(name) or not path.is_file():
            continue
        place = path.resolve()
        if place != home / name and place.parent != blobs:
            raise MuscleError(
                f"{path} is a link to {place}: nothing was copied or uploaded, since only the files of the folder "
                "itself are. Put a copy of the file there, or remove the link"
            )
        found[name] = path
    return found


def is_card(path: str) -> bool:
    """Whether a published file belongs to the card rather than to the adapter."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in CARD_FILES)


def pack(
    folder: str | os.PathLike,
    repo_id: str | None = None,
    *,
    base_model: str | None = None,
    base_revision: str | None = None,
    licenses: Mapping[str, str] | None = None,
    keep_card: bool = False,
    token: str | bool | None = None,
) -> Parcel:
    """Collect what :func:`~muscle_hf.hub.publish` uploads of an adapter's folder, which is not touched; ``licenses``
    holds ``license_old`` and ``license_new`` where the folder's card state does not know them.

    Refused: an incomplete folder, weights that are not those of its provenance, a text with ``token``, another token
    or a path of this machine in it.
    """
    folder = Path(folder)
    contents = regular_files(folder)
    missing = [name for name in ADAPTER_FILES if name not in contents]
    if missing:
        raise MuscleError(
            f"{folder} is not the folder of a saved compatibility adapter: it has no {', '.join(missing)}. Pass the "
            "output_dir of a MuscleTrainer (or one of its checkpoints)"
        )
    provenance = read_provenance(folder)
    checked = check_weights(folder, provenance)
    others = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    parcel = Parcel(dict(contents), sorted(name for name in others if name not in contents))
    if not checked:
        parcel.notes.append(f"{PROVENANCE_FILE} records no hash of {WEIGHTS_FILE}, which was not checked.")
    if METRICS_FILE in parcel.contents and load_metrics(folder, provenance.get("adapter_sha256")) is None:
        del parcel.contents[METRICS_FILE]
        parcel.left_out.append(METRICS_FILE)
        parcel.notes.append(f"{METRICS_FILE} is about other weights than these and is not published.")
    _name_base(parcel, provenance, base_model, base_revision)
    _write_card(parcel, folder, repo_id, licenses or {}, keep_card)
    if REPORT_FILE in parcel.contents:
        parcel.notes.append(f"{REPORT_FILE} is published: it shows the texts of the compared items.")
    _refuse_secrets(parcel, folder, token)
    return parcel


def _name_base(parcel: Parcel, provenance: dict[str, Any], base_model: str | None, base_revision: str | None) -> None:
    """Write the base's public name and pinned commit into the configuration and the provenance that go out."""
    base = provenance["new"]["base"]
    if base_model is not None:
        base.update(name=base_model, revision=base_revision, on_hub=True)
        parcel.contents[PROVENANCE_FILE] = _json(provenance)
    config = parse_object(_text(parcel.contents[ADAPTER_CONFIG]), ADAPTER_CONFIG)
    name, revision = base["name"], base["revision"]
    if name is None:
        name = Path(str(config.get("base_model_name_or_path") or "unknown")).name
    config["base_model_name_or_path"], config["revision"] = name, revision
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])  # PEFT writes a set, in any order
    parcel.contents[ADAPTER_CONFIG] = _json(config)
    if not base["on_hub"]:
        parcel.notes.append(
            f"The new base was loaded from a local folder: only its name, {name!r}, is published, which is no "
            "repository. Others must have the same base and pass its folder as base_model. If the base is on the Hub, "
            "push again with --base-model ID."
        )


def _write_card(
    parcel: Parcel, folder: Path, repo_id: str | None, licenses: Mapping[str, str], keep_card: bool
) -> None:
    state = replace(CardState.load(folder), **licenses)
    if licenses:
        parcel.contents[CARD_STATE_FILE] = _json(state.to_dict())
    card = folder / CARD_FILE
    if keep_card:
        if not card.is_file():
            raise MuscleError(f"{folder} has no {CARD_FILE} to keep")
        return
    if card.is_file() and not is_ours(card.read_text(encoding="utf-8")):
        parcel.notes.append(
            f"{CARD_FILE} in the folder was not rendered by muscle-hf; a rendered card is published instead. To "
            "publish yours, push with --keep-card."
        )
    # From what goes out, so that a base named just now stands in the card as well.
    rendered = render_card(
        folder, repo_id, provenance=json.loads(_text(parcel.contents[PROVENANCE_FILE])), state=state
    )
    for name in [name for name in parcel.contents if name.startswith((".eval_results/muscle_", "card_"))]:
        del parcel.contents[name]
    for name, content in {CARD_FILE: rendered.text, **rendered.pictures, **rendered.results}.items():
        parcel.contents[name] = content.encode()


def _refuse_secrets(parcel: Parcel, folder: Path, token: str | bool | None) -> None:
    """Refuse to tell the world an access token, or where things lie on this machine."""
    secrets = [secret for secret in (token, get_token()) if isinstance(secret, str) and secret]
    places = {str(place) for place in (folder.resolve(), folder.absolute(), Path.cwd(), Path.home())}
    places |= {json.dumps(place)[1:-1] for place in places}  # a path of Windows, as files of JSON have it
    # One as short as "/" is no secret, and in every text.
    places = [re.escape(place) + r"(?=[/\\\"'\s]|$)" for place in places if len(place) >= 5]
    # The card last: what it shows stands in one of the others, which is the file to mend.
    for name, content in sorted(parcel.contents.items(), key=lambda entry: entry[0] == CARD_FILE):
        if not name.endswith(_TEXT_SUFFIXES):
            continue
        text = _text(content)
        if _TOKEN.search(text) or any(secret in text for secret in secrets):
            raise MuscleError(f"{name} holds an access token: remove it from the file and revoke it")
        free = any(fnmatch.fnmatchcase(name, pattern) for pattern in _FREE_TEXT)
        if not free and (found := next(filter(None, (re.search(place, text) for place in places)), None)):
            raise MuscleError(f"{name} names a place on this machine ({found[0]}): replace it, or leave the file out")


def _text(content: bytes | Path) -> str:
    raw = content.read_bytes() if isinstance(content, Path) else content
    return raw.decode("utf-8", errors="replace")


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
