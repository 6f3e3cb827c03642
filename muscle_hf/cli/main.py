"""The console script ``muscle-hf``: finds the command and hands over."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from muscle_hf.console import INTERRUPTED, PROGRAM, hush_deprecations, patient_output

COMMANDS = {
    "demo": "train, evaluate and save a compatibility adapter on the embedded world",
    "train": "train a compatibility adapter as a YAML file says",
    "fleet": "a base update of many adapters: from one file to ship or hold for each",
    "cache": "compute once what the frozen teachers of a run say, and keep it on disk",
    "recipes": "list the recipes that travel with the package",
    "reproduce": "measure a row of the paper against its published figures",
    "compare": "what an update breaks and mends, from the predictions of both models",
    "noise": "how many answers flip when the same model is run again",
    "targets": "what rows without labels had best follow, tried on held-out rows",
    "tasks": "list the tasks, or print an item of one as the model sees it",
    "evaluate": "run a model on a task and keep its predictions",
    "check-served": "tell whether a server answers as the adapter that it serves",
    "harness": "run tasks of lm-evaluation-harness on old, new and compat",
    "dial": "choose a point between v2's adapter and the compatibility adapter",
    "card": "complete and render the model card of a saved adapter",
    "push": "publish a saved adapter on the Hub",
    "pull": "fetch an adapter from the Hub, pinned and checked",
    "list": "find compatibility adapters on the Hub",
    "push-metric": "publish a metric as a Space for evaluate.load",
}

# What their parsers do not know are settings.
TAKE_SETTINGS = frozenset({"train", "fleet", "cache", "reproduce"})
# As EX_SOFTWARE of sysexits.h.
CRASHED = 70


def module_of(command: str) -> Any:
    """The module of a command, imported only when that is called, so that ``--help`` stays fast."""
    return importlib.import_module(f"muscle_hf.cli.{command.replace('-', '_')}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; ``argv`` is without the program's name.

    The exit code is 0 done, 1 the command's own "no", 2 bad use or a file that cannot be read or written, 70 an error
    that nobody foresaw, 130 stopped by Ctrl-C; commands have more of their own.
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
        for name, text in COMMANDS.items():
            command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
            if name == asked:
                module_of(name).add_arguments(command)
                # What begins like a number is a value, such as -2% and -1e-3, which argparse takes for options.
                command._negative_number_matcher = re.compile(r"-\.?\d")
        args, more = parser.parse_known_args(arguments)
        if more and args.command not in TAKE_SETTINGS:
            parser.error(f"unrecognized arguments: {' '.join(more)}")
        args.overrides = more
        code = module_of(args.command).run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as stopped:
        print(f"{PROGRAM} {asked or ''}: {str(stopped) or 'stopped'}", file=sys.stderr)
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
