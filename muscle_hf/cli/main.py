"""The console script ``muscle-hf``: finds the command and hands over."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import traceback
from collections.abc import Sequence

from muscle_hf.console import INTERRUPTED, PROGRAM, hush_deprecations, patient_output

# name -> (help, module). A module is imported only when its command is called, so that --help stays fast.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("train, evaluate and save a compatibility adapter on the embedded world", "muscle_hf.cli.demo"),
    "train": ("train a compatibility adapter as a YAML file says", "muscle_hf.cli.train"),
    "fleet": ("a base update of many adapters: from one file to ship or hold for each", "muscle_hf.cli.fleet"),
    "cache": ("compute once what the frozen teachers of a run say, and keep it on disk", "muscle_hf.cli.cache"),
    "recipes": ("list the recipes that travel with the package", "muscle_hf.cli.recipes"),
    "reproduce": ("measure a row of the paper against its published figures", "muscle_hf.cli.reproduce"),
    "compare": ("what an update breaks and mends, from the predictions of both models", "muscle_hf.cli.compare"),
    "noise": ("how many answers flip when the same model is run again", "muscle_hf.cli.noise"),
    "targets": ("what rows without labels had best follow, tried on held-out rows", "muscle_hf.cli.targets"),
    "tasks": ("list the tasks, or print an item of one as the model sees it", "muscle_hf.cli.tasks"),
    "evaluate": ("run a model on a task and keep its predictions", "muscle_hf.cli.evaluate"),
    "check-served": ("tell whether a server answers as the adapter that it serves", "muscle_hf.cli.check_served"),
    "harness": ("run tasks of lm-evaluation-harness on old, new and compat", "muscle_hf.cli.harness"),
    "dial": ("choose a point between v2's adapter and the compatibility adapter", "muscle_hf.cli.dial"),
    "card": ("complete and render the model card of a saved adapter", "muscle_hf.cli.card"),
    "push": ("publish a saved adapter on the Hub", "muscle_hf.cli.push"),
    "pull": ("fetch an adapter from the Hub, pinned and checked", "muscle_hf.cli.pull"),
    "list": ("find compatibility adapters on the Hub", "muscle_hf.cli.list"),
    "push-metric": ("publish a metric as a Space for evaluate.load", "muscle_hf.cli.push_metric"),
}

# As EX_SOFTWARE of sysexits.h.
CRASHED = 70


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; ``sys.argv[1:]`` by default.

    Returns:
        The process exit code: 0 done, 1 the command's own "no", 2 bad use or a file that cannot be read or written,
        70 an error that nobody foresaw, 130 stopped by Ctrl-C; commands have more of their own.
    """
    with patient_output():
        hush_deprecations()
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(arguments: list[str]) -> int:
    from muscle_hf import __version__
    from muscle_hf.errors import MuscleError

    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Model updates that keep right answers right: compatibility adapters and flip metrics.",
    )
    parser.add_argument("--version", action="version", version=f"muscle-hf {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in arguments if word in COMMANDS), None)
    try:
        for name, (text, module) in COMMANDS.items():
            command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
            if name == asked:
                importlib.import_module(module).add_arguments(command)
                # What begins like a number is a value, such as -2% and -1e-3, which argparse takes for options.
                command._negative_number_matcher = re.compile(r"-\.?\d")
        args, more = parser.parse_known_args(arguments)
        module = importlib.import_module(COMMANDS[args.command][1])
        if more and not getattr(module, "TAKES_OVERRIDES", False):
            parser.error(f"unrecognized arguments: {' '.join(more)}")
        args.overrides = more
        code = module.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(f"{PROGRAM} {asked or ''}: stopped", file=sys.stderr)
        return INTERRUPTED
    except (MuscleError, OSError) as error:
        print(f"{PROGRAM} {asked}: error: {error}", file=sys.stderr)
        return 2
    except Exception:
        # Python itself ends with 1, which says that a gate failed.
        traceback.print_exc()
        return CRASHED


if __name__ == "__main__":
    sys.exit(main())
