"""``muscle-hf cache``: compute the hidden states of a run's teachers before it trains."""

from __future__ import annotations

import argparse
from pathlib import Path

from muscle_hf.user_code import add_no_code_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, the cache's folder, and the server that v1 may be behind."""
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML with the settings, or a recipe's name")
    parser.add_argument("--cache", metavar="DIR", help="folder of the cache (default: the run's own)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="rows per forward pass (default: evaluation's)")
    server = parser.add_argument_group("a v1 behind an OpenAI-compatible server (settings of old.server)")
    server.add_argument("--server", metavar="URL", help="for example http://localhost:8000/v1")
    server.add_argument("--server-model", metavar="NAME", help="the name under which it is served")
    server.add_argument("--top-k", metavar="K", help="likeliest tokens kept at each place (default: 20)")
    add_no_code_argument(parser)
    parser.epilog = (
        "Every setting of the file can be given on the command line too, as for `muscle-hf train`; task adapters that "
        "are missing are trained first. What is cached already is not computed again."
    )


def run(args: argparse.Namespace) -> int:
    """Fill the cache and say what it holds."""
    from muscle_hf.errors import MuscleError
    from muscle_hf.pipeline.config import load_settings
    from muscle_hf.pipeline.recipes import find_recipe

    given = {"url": args.server, "model": args.server_model, "top_k": args.top_k}
    served = [word for name, value in given.items() if value for word in (f"--old.server.{name}", value)]
    settings = load_settings(find_recipe(args.config), [*args.overrides, *served])
    if args.batch_size is not None and args.batch_size < 1:
        raise MuscleError(f"--batch-size is {args.batch_size}; it must be at least 1")
    from rich.console import Console

    from muscle_hf.pipeline.caching import cache_run
    from muscle_hf.pipeline.steps import hush
    from muscle_hf.pipeline.teaching import FOLDER

    hush()
    folder = args.cache or settings.training.get("teacher_cache") or Path(settings.output_dir, FOLDER)
    console = Console(highlight=False, soft_wrap=True)
    for role, cached in cache_run(settings, folder, args.batch_size, console.print).items():
        console.print(
            f"{role} model: {cached.rows:,} rows in {cached.folder}, {cached.computed:,} of them computed now"
        )
    return 0
