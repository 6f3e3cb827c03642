"""Runs scripts in several processes, as ``torchrun`` does, whose imports are made once for all of them."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path

import paths

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["builders"])


def launched(
    script: list[str],
    variables: dict[str, str] | None = None,
    *,
    processes: int = 2,
    code: int = 0,
    folder: str | os.PathLike = ".",
) -> str:
    """What a script prints that is run in one or more processes.

    Args:
        script: A file and its arguments.
        variables: Of the environment.
        processes: How many.
        code: With which each of them ends; negative for a signal.
        folder: Where they run.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # DeepSpeed builds with the ninja that lies beside this Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes), "PATH": path}
    group |= {"LOCAL_WORLD_SIZE": str(processes), **(variables or {})}
    # The server takes its path from here, when it is started.
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(paths.SUPPORT), *filter(None, sys.path)]))
    with tempfile.TemporaryDirectory() as outputs:
        started = []
        for rank in map(str, range(processes)):
            given = {**group, "RANK": rank, "LOCAL_RANK": rank} if processes > 1 else variables or {}
            how = script, given, os.path.abspath(folder), os.path.join(outputs, rank)
            started.append(_SERVER.Process(target=_run, args=how))
            started[-1].start()
        until = time.monotonic() + 600
        running = started
        while running and time.monotonic() < until and all(one.exitcode in (None, code) for one in started):
            wait([one.sentinel for one in running], max(0, until - time.monotonic()))
            running = [one for one in running if one.exitcode is None]
        for one in running:  # which would wait for the others for ever
            one.kill()
            one.join()
        said = "".join(file.read_text(errors="replace") for file in sorted(Path(outputs).iterdir()))
    codes = [one.exitcode for one in started]
    named = [signal.Signals(-each).name if each < 0 else each for each in codes]
    assert codes == [code] * processes, f"the processes ended with {named} after:\n{said[-12000:]}"
    return said


def _run(script: list[str], variables: dict[str, str], folder: str, output: str) -> None:
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable()  # a signal says where it struck
    os.environ.update(variables)
    os.chdir(folder)
    sys.argv = script
    sys.path.insert(0, str(Path(script[0]).parent))
    runpy.run_path(script[0], run_name="__main__")


def end(trainer) -> None:
    """Ends a launched script whose work is done."""
    # Under DeepSpeed a process that exits in its group may abort in its last moment.
    trainer.accelerator.end_training()
    sys.stdout.flush()
    # While Python takes itself down, torch now and then destroys a thread that still runs, and aborts.
    os._exit(0)
