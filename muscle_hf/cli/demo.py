"""``muscle-hf demo``: the main job on the embedded world."""

from __future__ import annotations

import argparse

TASK_NAMES = ("routing", "refund", "summary")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task", choices=(*TASK_NAMES, "all"), default="routing", help="which of the three tasks (default: routing)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of data, order and initialisation, 0 to 9 (default: 0)")
    parser.add_argument("--output", default="demo-output", metavar="FOLDER", help="default: demo-output")


def run(args: argparse.Namespace) -> int:
    """Run the demo and print its table."""
    from rich.console import Console

    from muscle_hf.console import command
    from muscle_hf.demo.run import run_demo
    from muscle_hf.pipeline import table
    from muscle_hf.pipeline.steps import hush
    from muscle_hf.report.terminal import print_warnings

    hush()
    console = Console(highlight=False, soft_wrap=True)
    for task in TASK_NAMES if args.task == "all" else (args.task,):
        folder, result, seconds = run_demo(task, args.seed, args.output, console.print)
        console.print(table.to_rich(result))
        print_warnings(result.warnings, console)
        files = [folder / "predictions" / f"{name}.jsonl" for name in ("old", "new", "muscle")]
        console.print(
            f"{seconds:.0f} s. The compatibility adapter is in {folder / 'muscle'}: an ordinary LoRA on v2.\n"
            "Next, look at every answer that changed:\n"
            f"  {command('compare', *files, '--html', folder / 'report.html')}\n",
            markup=False,
        )
    return 0
