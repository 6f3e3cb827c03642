"""``muscle-hf push-metric``: publish a metric as a Space for ``evaluate.load``."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which metric, and to which Space."""
    parser.add_argument("metric", help="muscle_flips, muscle_smooth_flips, or all")
    parser.add_argument("repo", nargs="?", help="NAMESPACE or NAMESPACE/METRIC; by default your own namespace")
    parser.add_argument("--private", action="store_true", default=None, help="make a new Space private")


def run(args: argparse.Namespace) -> int:
    """Publish and print how to load it."""
    from muscle_hf.errors import MuscleError
    from muscle_hf.hub import publish_metric
    from muscle_hf.metrics.spaces import SPACES

    if args.metric == "all" and args.repo and "/" in args.repo:
        raise MuscleError("with `all`, name the namespace alone: each Space is called like its metric")
    for name in SPACES if args.metric == "all" else (args.metric,):
        space = publish_metric(name, args.repo, private=args.private)
        print(f'evaluate.load("{space}")')
    return 0
