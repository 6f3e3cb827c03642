"""``muscle-hf demo``: the main job on the embedded world."""

from __future__ import annotations

import argparse
import os

TASK_NAMES = ("routing", "refund", "summary")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which task of the embedded world, and where to."""
    parser.add_argument("--task", choices=(*TASK_NAMES, "all"), default="routing", help="which one (default: routing)")
    parser.add_argument("--seed", type=int, default=0, help="of data, order and initialisation, 0 to 9 (default: 0)")
    parser.add_argument("--output", default="demo-output", metavar="FOLDER", help="default: demo-output")


def run(args: argparse.Namespace) -> int:
    """Run the demo, print its table and what to do next."""
    import torch
    from rich.console import Console

    from muscle_hf.demo import story
    from muscle_hf.demo.progress import Line
    from muscle_hf.demo.run import REPORT, run_demo, stages
    from muscle_hf.pipeline import table
    from muscle_hf.pipeline.steps import hush
    from muscle_hf.report.terminal import print_warnings

    hush()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # models this small gain nothing from a second, and threads that share a core crawl
    console = Console(highlight=False, soft_wrap=True)
    for task in TASK_NAMES if args.task == "all" else (args.task,):
        line = Line(sum(size for process in stages(task) for _, size in process), console)
        with line.shown:
            demo = run_demo(task, args.seed, args.output, line)
        console.print(table.to_rich(demo.result, story.NAMES, short=True))
        console.print(story.words(demo), markup=False)
        print_warnings(demo.result.warnings, console)
        console.print(f"\nThe report: {demo.folder / REPORT}", markup=False)
        for what, command in story.next_steps(demo):
            console.print(f"\n{what}:\n{command}", markup=False)
    return 0
