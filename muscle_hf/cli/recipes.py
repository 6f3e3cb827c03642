"""``muscle-hf recipes``: what recipes there are, and what is in them."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which recipe."""
    parser.add_argument("name", nargs="?", help="of one recipe: print its file; or the beginning of several names")


def run(args: argparse.Namespace) -> int:
    """List the recipes, or print one."""
    from muscle_hf.errors import MuscleError
    from muscle_hf.pipeline.recipes import recipes, title_of

    known = recipes()
    if args.name in known:
        print(f"# {known[args.name]}\n{known[args.name].read_text(encoding='utf-8')}", end="")
        return 0
    chosen = {name: file for name, file in known.items() if name.startswith(args.name or "")}
    if not chosen:
        raise MuscleError(f"no recipe's name begins with {args.name!r}; `muscle-hf recipes` lists all")
    width = max(map(len, chosen))
    for name, file in chosen.items():
        print(f"{name:{width}}  {title_of(file)}")
    return 0
