"""``muscle-hf harness``: run tasks of lm-evaluation-harness on old, new and compatibility models."""

from __future__ import annotations

import argparse
from pathlib import Path

from muscle_hf.cli.evaluate import DTYPES
from muscle_hf.console import command
from muscle_hf.errors import MuscleError
from muscle_hf.user_code import add_no_code_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The models, the harness's tasks, and where its logs go."""
    parser.add_argument("--old", required=True, help="v1's task model: folder or Hub id of an adapter or model")
    parser.add_argument("--new", required=True, help="v2's task model")
    parser.add_argument("--compat", help="compatibility model; adapters of the same base share one copy of it")
    parser.add_argument("--tasks", required=True, help="names of tasks, separated by commas")
    parser.add_argument("--output", required=True, type=Path, help="folder for the harness's logs, one per model")
    parser.add_argument("--include-path", help="folder with further task files")
    add_no_code_argument(parser)
    parser.add_argument("--num-fewshot", type=int, help="examples before each prompt (default: the task's)")
    parser.add_argument("--limit", type=int, help="most items of each task")
    parser.add_argument("--batch-size", default="8", help="sequences in a pass, or auto (default: %(default)s)")
    parser.add_argument("--chat", action="store_true", help="apply the tokenizer's chat template")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="of the weights (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the accelerator if there is one)")


def run(args: argparse.Namespace) -> int:
    """Run the harness on each model and print where the logs are."""
    from muscle_hf.evaluation.harness import load_sides, run_harness

    if args.include_path is not None and not Path(args.include_path).is_dir():
        raise MuscleError(f"there is no folder {args.include_path} with task files (--include-path)")
    names = {side: getattr(args, side) for side in ("old", "new", "compat") if getattr(args, side)}
    run_harness(
        load_sides(names, dtype=args.dtype, device=args.device),
        args.tasks.split(","),
        output=args.output,
        include_path=args.include_path,
        batch_size=int(args.batch_size) if args.batch_size.isdigit() else args.batch_size,
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        apply_chat_template=args.chat,
    )
    print(f"Logs are in {args.output}. Next: {command('compare', *(args.output / side for side in names))}")
    return 0
