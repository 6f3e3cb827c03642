"""What commands share that speak on a terminal; nothing heavy is imported."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

PROGRAM = "muscle-hf"
# As a shell says of a program that Ctrl-C ended.
INTERRUPTED = 130


def is_first_process() -> bool:
    """Of the processes that ``accelerate launch`` starts, the first one speaks and writes."""
    return os.environ.get("RANK", "0") == "0"


def command(*words: object) -> str:
    """A command of this program that can be pasted into a shell, whether or not its environment is active there."""
    found = shutil.which(PROGRAM)
    active = found is not None and Path(found).parent == Path(sys.executable).parent
    return shlex.join([*([PROGRAM] if active else [sys.executable, "-m", "muscle_hf"]), *map(str, words)])


def hush_deprecations() -> None:
    """Silence what libraries warn each other of: nobody who runs a command can do anything about it."""
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
    # A faster kernel for 4-bit weights on a CPU is missing: said at import, whatever is done.
    logging.getLogger("bitsandbytes.backends.cpu").setLevel(logging.ERROR)


class _MayClose(io.FileIO):
    """A descriptor whose reader may leave before the end (``| head``): the rest goes nowhere, the work goes on."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(data).nbytes


@contextlib.contextmanager
def patient_output() -> Iterator[None]:
    """Within the block a reader of the output may leave, and a sign that a console lacks is shown by its number.

    Exit codes stay the command's own: of a gate, say, whose table nobody read to its end.
    """
    former = sys.stdout, sys.stderr
    try:
        sys.stdout, sys.stderr = map(_patient, former)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = former


def _patient(stream: TextIO | None) -> TextIO:
    if stream is None:  # closed by whoever started this (`>&-`)
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="backslashreplace")
    try:
        number = stream.fileno()
    except OSError:  # kept in memory
        return stream
    if stream.isatty():
        return stream
    stream.flush()
    raw = _MayClose(number, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
