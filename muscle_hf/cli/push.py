"""``muscle-hf push``: publish a saved compatibility adapter."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which adapter, and to which repository."""
    parser.add_argument("folder", help="output_dir of a MuscleTrainer, or one of its checkpoints")
    parser.add_argument("repo", help="NAMESPACE/NAME on the Hub, or NAME for your own namespace; created if missing")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to; created if missing")
    parser.add_argument("--message", default="Upload compatibility adapter", help="title of the commit")
    parser.add_argument(
        "--base-model",
        metavar="ID",
        help="the new base's id on the Hub, where it was trained on from a local copy; its present commit is pinned",
    )
    parser.add_argument("--keep-card", action="store_true", help="publish README.md as it is; do not render the card")
    parser.add_argument("--dry-run", action="store_true", help="list what would be uploaded, and stop; asks nobody")
    parser.epilog = (
        "The token is taken from `hf auth login` or HF_TOKEN. Never uploaded: teachers, checkpoints, optimizer "
        "states, pickles, caches, tokens, paths of this machine."
    )


def run(args: argparse.Namespace) -> int:
    """Publish, and say what was sent and what others need."""
    from muscle_hf.console import command
    from muscle_hf.hub import publish
    from muscle_hf.hub.files import pack
    from muscle_hf.record import read_provenance
    from muscle_hf.report.text import plain

    if args.dry_run:
        parcel = pack(args.folder, args.repo, base_model=args.base_model, keep_card=args.keep_card)
        for name, content in sorted(parcel.contents.items()):
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            print(f"would upload: {plain(name)} ({size:,} bytes)")
        _say(parcel.left_out, parcel.notes)
        return 0
    done = publish(
        args.folder,
        args.repo,
        private=args.private,
        revision=args.revision,
        commit_message=args.message,
        base_model=args.base_model,
        keep_card=args.keep_card,
    )
    for what, names in (("published", done.uploaded), ("removed", done.removed)):
        if names:
            print(f"{what}: {', '.join(plain(name) for name in _folded(names))}")
    _say(done.left_out, done.notes)
    # A base that is no repository must be at hand where the adapter is loaded.
    local = args.base_model is None and not read_provenance(args.folder)["new"]["base"]["on_hub"]
    print(
        f"{done.commit.commit_url}\n"
        f"Use it: {command('pull', done.repo_id, *(['--base-model', 'FOLDER'] if local else []))}, or "
        f"muscle_hf.load_compatible({done.repo_id!r}{', base_model=FOLDER' if local else ''})"
    )
    return 0


def _say(left_out: list[str], notes: list[str]) -> None:
    from muscle_hf.report.text import plain

    if left_out:
        print(f"not published: {', '.join(plain(name) for name in _folded(left_out))}")
    for note in notes:
        print(f"note: {note}")


def _folded(names: list[str]) -> list[str]:
    """Whole folders by their name: a checkpoint has a dozen files."""
    return sorted({name.split("/", 1)[0] + "/" if "/" in name else name for name in names})
