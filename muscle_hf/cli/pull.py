"""``muscle-hf pull``: fetch a compatibility adapter, pinned and checked."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repo", help="NAMESPACE/NAME on the Hub")
    parser.add_argument("--revision", help="branch, tag or commit; by default main")
    parser.add_argument("--to", metavar="FOLDER", help="copy the files there; by default they stay in the Hub's cache")
    parser.add_argument(
        "--check",
        action="store_true",
        help="also fetch the base and check base, architecture and tokenizer against the provenance",
    )
    parser.add_argument("--base-model", metavar="FOLDER_OR_ID", help="with --check: the base, if not the recorded one")
    parser.add_argument(
        "--allow-mismatch", action="store_true", help="with --check: warn of a mismatch, do not refuse"
    )


def run(args: argparse.Namespace) -> int:
    from muscle_hf.hub import fetch, load_compatible
    from muscle_hf.hub.copying import copy_to
    from muscle_hf.hub.text import plain

    fetched = fetch(args.repo, revision=args.revision)
    if args.check:
        load_compatible(
            args.repo,
            revision=fetched.commit,
            base_model=args.base_model,
            allow_mismatch=args.allow_mismatch,
        )
    folder = copy_to(fetched, args.to) if args.to else fetched.folder
    old, new = (fetched.provenance[role]["base"] for role in ("old", "new"))
    print(f"old base: {plain(old['name'])} ({plain(old['revision'] or 'local copy')})")
    print(f"new base: {plain(new['name'])} ({plain(new['revision'] or 'local copy')})")
    print(f"commit:   {fetched.commit or 'local folder'}")
    print(f"weights:  as recorded{'; base, architecture and tokenizer fit' if args.check else ''}")
    print(folder)
    return 0
