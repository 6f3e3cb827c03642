"""``muscle-hf pull``: fetch a compatibility adapter and its base, pinned and checked."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which adapter, where to, and the base it is checked against."""
    parser.add_argument("repo", help="NAMESPACE/NAME on the Hub")
    parser.add_argument("--revision", help="branch, tag or commit; by default main")
    parser.add_argument("--to", metavar="FOLDER", help="copy the files there; by default they stay in the Hub's cache")
    parser.add_argument("--base-model", metavar="FOLDER_OR_ID", help="a local copy of the base, or where it has moved")
    parser.add_argument("--allow-mismatch", action="store_true", help="warn of what does not fit, do not refuse")
    parser.add_argument(
        "--adapter-only",
        action="store_true",
        help="leave the base alone: check the weights, but not base, architecture and tokenizer",
    )


def run(args: argparse.Namespace) -> int:
    """Fetch, check, and say what the adapter was trained for."""
    from muscle_hf.hub import fetch, load_compatible
    from muscle_hf.hub.fetching import copy_to
    from muscle_hf.record import unrecorded
    from muscle_hf.report.text import plain

    fetched = fetch(args.repo, revision=args.revision)
    if not args.adapter_only:
        load_compatible(
            args.repo,
            revision=fetched.commit,
            base_model=args.base_model,
            allow_mismatch=args.allow_mismatch,
        )
    folder = copy_to(fetched.folder, args.to) if args.to else fetched.folder
    old, new = (fetched.provenance[role]["base"] for role in ("old", "new"))
    print(f"old base: {plain(old['name'])} ({plain(old['revision'] or 'local copy')})")
    print(f"new base: {plain(new['name'])} ({plain(new['revision'] or 'local copy')})")
    print(f"commit:   {fetched.commit or 'local folder'}")
    missing = unrecorded(fetched.provenance)
    print(f"weights:  {'not checked, no hash of them is recorded' if 'weights' in missing else 'as recorded'}")
    if not args.adapter_only:
        how = "compared; what does not fit is only warned of" if args.allow_mismatch else "checked"
        print(f"          architecture {how}")
        for part in ("base", "tokenizer"):
            print(f"          {part} {'not checked, no hash of it is recorded' if part in missing else how}")
    if said := _figures(fetched.folder, fetched.provenance):
        print(f"figures:  {said}")
    print(folder)
    return 0


def _figures(folder: Path, provenance: dict[str, Any]) -> str | None:
    """Whether the card's comparison is of this adapter; None if there is none."""
    from muscle_hf.errors import MuscleError
    from muscle_hf.hub.origins import check_origins
    from muscle_hf.hub.state import load_metrics
    from muscle_hf.report.text import plain

    try:
        comparison = load_metrics(folder, provenance.get("adapter_sha256"))
        unverified = [] if comparison is None else check_origins(comparison, provenance)
    except MuscleError as error:
        return f"not of this adapter: {plain(error, 500)}"
    if comparison is None:
        return None
    if unverified:
        return f"not verified: what gave the answers is not recorded for {', '.join(map(plain, unverified))}"
    return "of this adapter and the recorded models, by their hashes"
