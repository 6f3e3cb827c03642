"""Publish the ``evaluate`` modules as Spaces, from which ``evaluate.load`` reads them."""

from __future__ import annotations

from pathlib import Path

from muscle_hf.errors import MuscleError
from muscle_hf.hub.errors import hub_errors
from muscle_hf.hub.publishing import hub_api
from muscle_hf.metrics.spaces import SPACES, space_folder

_AFTERWARDS = "Run the same again: what is there already is not sent twice."


def publish_metric(
    name: str, repo_id: str | None = None, *, token: str | bool | None = None, private: bool | None = None
) -> str:
    """Publish one of the metrics (``muscle_flips`` or ``muscle_smooth_flips``) as a Space; gives the id that
    ``evaluate.load`` takes. A failed upload is a :class:`HubError` that says why, and can be repeated.

    ``repo_id`` is ``namespace`` or ``namespace/name``, by default the metric's name in the token's own namespace.
    ``evaluate.load`` looks for a module of the Space's name, so the last part must be the metric's. ``private`` is of
    a new Space.
    """
    folder = Path(space_folder(name))
    wanted = repo_id or name
    if wanted in SPACES or "/" in wanted:
        if wanted.rsplit("/", 1)[-1] != name:
            raise MuscleError(f"the Space must be called {name}, as its module is, for evaluate.load to find it")
    else:
        wanted = f"{wanted}/{name}"
    api = hub_api(token)
    with hub_errors(f"publishing {name} to {wanted}", _AFTERWARDS, token):
        created = api.create_repo(wanted, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=created.repo_id,
            repo_type="space",
            folder_path=folder,
            allow_patterns=["*.py", "*.md", "*.txt"],
            ignore_patterns=["__pycache__/*"],
            commit_message=f"Publish {name}",
        )
    return created.repo_id
