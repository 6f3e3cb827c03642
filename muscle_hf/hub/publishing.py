"""Upload a compatibility adapter: only what belongs to it, in one commit or not at all."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError, HTTPError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

import muscle_hf
from muscle_hf.errors import MuscleError
from muscle_hf.hub.errors import hub_errors
from muscle_hf.hub.files import WEIGHTS_FILE, Parcel, is_card, is_published, pack
from muscle_hf.hub.state import CardState
from muscle_hf.record import PROVENANCE_FILE, read_provenance

_AFTERWARDS = (
    "Nothing local was changed, and the repository has all of an upload or none of it: mend that and run the same "
    "again."
)


_WEIGHTS = (".safetensors", ".bin", ".gguf", ".h5", ".msgpack", ".onnx")
# What peft and Trainer put into an adapter's repository.
_OF_ADAPTERS = (WEIGHTS_FILE, "adapter_model.bin", "training_args.bin")


@dataclass(frozen=True)
class Published:
    """The outcome of an upload.

    Args:
        repo_id: The repository, with its namespace.
        commit: The commit that now holds the adapter (the one that was there, if nothing changed).
        uploaded: Its files there; what the repository had already was not sent again.
        removed: Files of an earlier upload (one with provenance) that this adapter does not have.
        left_out: Files of the folder that are never published.
        notes: What the publisher should know.
    """

    repo_id: str
    commit: CommitInfo
    uploaded: list[str]
    removed: list[str]
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def hub_api(token: str | bool | None = None) -> HfApi:
    """The Hub's client, which names this library to the server."""
    return HfApi(token=token, library_name="muscle-hf", library_version=muscle_hf.__version__)


def prepare_repository(
    repo_id: str, *, token: str | bool | None = None, private: bool | None = None, revision: str | None = None
) -> str:
    """Create a model repository and its branch, or find them there, and give the id with its namespace; one that holds
    a model of another kind is refused."""
    api = hub_api(token)
    with hub_errors(f"creating the repository {repo_id}", _AFTERWARDS, token):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        there = _remote_files(api, repo_id, _head(api, repo_id, revision))
    # An adapter without provenance may become one with it.
    weights = [name for name in there if name.endswith(_WEIGHTS) and name.rpartition("/")[2] not in _OF_ADAPTERS]
    if weights and PROVENANCE_FILE not in there:
        shown = ", ".join(sorted(weights)[:3]) + (", ..." if len(weights) > 3 else "")
        raise MuscleError(
            f"{repo_id} holds a model already ({shown}) and no {PROVENANCE_FILE}, so it was not published from here, "
            "and an adapter on top would spoil it. Nothing was uploaded: give the adapter a repository of its own"
        )
    return repo_id


def publish(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    path_in_repo: str = "",
    commit_message: str = "Upload compatibility adapter",
    base_model: str | None = None,
    keep_card: bool = False,
) -> Published:
    """Publish a saved compatibility adapter: weights, tokenizer, provenance, metrics, report and card.

    The folder is read, never changed. All files go into one commit, so that a broken upload leaves the repository as
    it was; files that the repository holds already are not sent again.

    Args:
        folder: Written by ``MuscleTrainer``.
        repo_id: ``namespace/name``, or ``name`` for the token's own namespace; is created if missing.
        token: Of the Hub; by default the stored one.
        private: Whether a new repository is private.
        revision: Branch to commit to; is created if missing.
        path_in_repo: Subfolder, for checkpoints; the card stays at the top.
        commit_message: Title of the commit.
        base_model: Hub id of the new base, where it was trained on from a local copy; its present commit is pinned.
        keep_card: Publish README.md as it is, rather than rendering it.

    Raises:
        MuscleError: The folder is not fit to be published, or the repository holds a model of another kind; says why.
            Nothing was sent.
        HubError: The upload failed; says why. It can be repeated.
    """
    folder = Path(folder)
    pack(folder, repo_id, keep_card=keep_card, token=token)  # what is wrong with the folder is said before any request
    repo_id = prepare_repository(repo_id, token=token, private=private, revision=revision)
    api = hub_api(token)
    base_revision = None
    if base_model is not None:
        with hub_errors(f"looking for the base {base_model}", _AFTERWARDS, token):
            base_revision = api.model_info(base_model).sha
    parcel = pack(
        folder,
        repo_id,
        base_model=base_model,
        base_revision=base_revision,
        licenses=_licenses(folder, api, base_model),
        keep_card=keep_card,
        token=token,
    )
    if path_in_repo:
        parcel.contents = {name: content for name, content in parcel.contents.items() if not is_card(name)}
    with hub_errors(f"uploading to {repo_id}", _AFTERWARDS, token):
        return _commit(api, repo_id, parcel, revision, path_in_repo.strip("/"), commit_message)


def _commit(
    api: HfApi, repo_id: str, parcel: Parcel, revision: str | None, path_in_repo: str, commit_message: str
) -> Published:
    head = _head(api, repo_id, revision)
    prefix = f"{path_in_repo}/" if path_in_repo else ""
    there = _remote_files(api, repo_id, head, path_in_repo)
    wanted = {prefix + name: content for name, content in parcel.contents.items()}
    # What an earlier upload left and this adapter lacks (a report, say) would be taken for part of it.
    left = [name for name in there if name not in wanted and is_published(name.removeprefix(prefix))]
    removed = left if prefix + PROVENANCE_FILE in there else []
    # The client leaves out what the repository has already.
    operations = [CommitOperationAdd(name, content) for name, content in wanted.items()]
    operations += [CommitOperationDelete(name) for name in removed]
    commit = api.create_commit(
        repo_id, operations, commit_message=commit_message, revision=revision, parent_commit=head
    )
    return Published(repo_id, commit, list(wanted), removed, parcel.left_out, parcel.notes)


def _head(api: HfApi, repo_id: str, revision: str | None) -> str:
    try:
        found = api.model_info(repo_id, revision=revision)
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=cast("str", revision), exist_ok=True)  # the main one is always there
        found = api.model_info(repo_id, revision=revision)
    return cast("str", found.sha)


def _remote_files(api: HfApi, repo_id: str, head: str, folder: str = "") -> list[str]:
    try:
        tree = list(api.list_repo_tree(repo_id, folder or None, recursive=True, revision=head))
    except EntryNotFoundError:
        return []
    return [entry.path for entry in tree if isinstance(entry, RepoFile)]


def _licenses(folder: Path, api: HfApi, base_model: str | None) -> dict[str, str]:
    """The bases' licences by their pages on the Hub, where the card state does not know them.

    A base whose page cannot be read (gated, or gone) stays unknown, which the card then says.
    """
    state, provenance = CardState.load(folder), read_provenance(folder)
    found = {}
    for name, role in (("license_old", "old"), ("license_new", "new")):
        base = provenance[role]["base"]
        page = base["name"] if base["on_hub"] else None
        if role == "new" and base_model is not None:
            page = base_model
        if getattr(state, name) or not page:
            continue
        try:
            data = api.model_info(page).card_data
        except HTTPError:
            continue
        if data is not None and isinstance(data.license, str):
            found[name] = data.license
    return found
