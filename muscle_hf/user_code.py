"""Python code that settings name (tasks, checkers, masks of one's own): said before it runs, refused where asked."""

from __future__ import annotations

import argparse
import functools
import logging
import os

from muscle_hf.console import is_first_process
from muscle_hf.errors import MuscleError

# Processes that a command starts inherit it.
NO_CODE = "MUSCLE_HF_NO_CODE"

logger = logging.getLogger(__name__)


def about_to_run(code: str) -> None:
    """Say that code of the user's (``the task in /home/me/task.py``) is run next, once for each; call it before. A
    MuscleError where ``--no-code`` was given, or the variable ``MUSCLE_HF_NO_CODE`` is set."""
    if os.environ.get(NO_CODE, "0") != "0":
        raise MuscleError(
            f"--no-code (or {NO_CODE}=1) refuses to run {code}. Read it first; leave --no-code out if you trust it"
        )
    if is_first_process():
        _say(code)


@functools.cache
def _say(code: str) -> None:
    logger.warning("Running %s", code)


def add_no_code_argument(parser: argparse._ActionsContainer) -> None:
    """``--no-code``, of every command whose settings can name Python code."""
    parser.add_argument(
        "--no-code",
        action=_Refuse,
        nargs=0,
        help=f"refuse to run Python code that the settings name, a task, checker or mask of one's own ({NO_CODE}=1)",
    )


class _Refuse(argparse.Action):
    def __call__(self, *_: object) -> None:
        os.environ[NO_CODE] = "1"
