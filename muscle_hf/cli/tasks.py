"""``muscle-hf tasks``: what tasks there are, and an item of one as the model sees it."""

from __future__ import annotations

import argparse

from muscle_hf.user_code import add_no_code_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which task, and which of its rows."""
    parser.add_argument("name", nargs="?", help="a built-in task, a .yaml file, or file.py:variable: print an item")
    parser.add_argument("--data", help="file, folder or dataset id (default: an example row, or the task's own data)")
    parser.add_argument("--split", default="test", help="split to read (default: %(default)s)")
    parser.add_argument("--start", type=int, default=0, metavar="N", help="take row N (default: the first)")
    parser.add_argument("--num-fewshot", type=int, default=0, metavar="N", help="solved training items before it")
    add_no_code_argument(parser)


def run(args: argparse.Namespace) -> int:
    """List the built-in tasks, or print an item of one."""
    from muscle_hf.evaluation.builtin import TASKS, examples
    from muscle_hf.evaluation.registry import load_items, load_task
    from muscle_hf.evaluation.tasks import describe_item
    from muscle_hf.report.text import visible

    if args.name is None:
        width = max(map(len, TASKS))
        for task in TASKS.values():
            print(f"{task.name:{width}}  {task.kind:10}  {task.metric:11}  {task.source.path if task.source else ''}")
        return 0
    task = load_task(args.name)
    made_up = args.data is None and not args.num_fewshot and examples().get(args.name)
    if made_up:
        item = task.to_item(made_up, 0)
    else:
        options = {"start": args.start, "limit": 1, "num_fewshot": args.num_fewshot}
        (item,) = load_items(task, args.data, args.split, **options)
    source = f"; its data set is {task.source.path}" if task.source else ""
    print(f"{task.name}: a {task.kind} task, judged by {task.metric}{source}.")
    if made_up:
        print("A made-up row; --data or --num-fewshot show one of the data.")
    print(visible(describe_item(task, item)))
    return 0
