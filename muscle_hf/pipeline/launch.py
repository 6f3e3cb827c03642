"""The command line of the recipe scripts, and how ``muscle-hf train`` starts them by ``accelerate launch``."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from muscle_hf.bundled import bundled
from muscle_hf.console import INTERRUPTED, is_first_process
from muscle_hf.errors import MuscleError
from muscle_hf.pipeline.config import RunSettings, load_settings
from muscle_hf.pipeline.reading import read_yaml
from muscle_hf.pipeline.recipes import accelerate_config, find_recipe
from muscle_hf.user_code import add_no_code_argument

# ---- What the recipe scripts share ----


def settings_of_command(description: str, *, choices: Sequence[str] = ()) -> Any:
    """The settings that a recipe script's command line names; with ``choices`` also its first word, one of these."""
    if not is_first_process():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if choices:
        parser.add_argument("which", choices=choices)
    add_config_arguments(parser)
    args, overrides = parser.parse_known_args()
    settings = resolved(args, overrides)
    return (settings, args.which) if choices else settings


def script(work: Callable[[], None]) -> None:
    """Do the work of a recipe script, and end it with an exit code: 2 for bad settings, 130 if it was interrupted."""
    try:
        code = interruptible(work)
    except MuscleError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    from torch import distributed

    if code == 0 and distributed.is_available() and distributed.is_initialized():
        # Threads of the group that still run while Python ends abort one process in six under DeepSpeed, after all is
        # saved.
        distributed.destroy_process_group()
    # Anything else than 0 torch's launcher takes for a crash; it reports the signal itself.
    sys.exit(0 if "TORCHELASTIC_RUN_ID" in os.environ else code)


def interruptible(work: Callable[[], int | None]) -> int:
    """Do work that Ctrl-C may end, which is then said on the main process; gives its exit code, or 130."""
    try:
        return work() or 0
    except KeyboardInterrupt as stopped:
        said = str(stopped) or "Stopped. The same command goes on after the last step that was finished."
        report(said, file=sys.stderr)
        return INTERRUPTED


def report(text: str, **how: Any) -> None:
    """Print on the main process only; ``how`` as of ``print``."""
    if is_first_process():
        print(text, flush=True, **how)


# ---- Arguments ----


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a run's settings."""
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML with the settings, or a recipe's name")
    add_run_arguments(parser)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """``--smoke`` and ``--no-code``."""
    parser.add_argument("--smoke", action="store_true", help="try the settings out on tiny random models and few rows")
    add_no_code_argument(parser)


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say how many processes do a run."""
    parser.add_argument(
        "--accelerate-config",
        metavar="NAME",
        help="an accelerate configuration, or the name of one in recipes/accelerate: ddp, fsdp2, zero3, ...; starts "
        "recipes/run.py by `accelerate launch`",
    )
    parser.add_argument(
        "--num-processes",
        type=int,
        metavar="N",
        help="one for each GPU to use; by default what the accelerate configuration says, and without one all GPUs",
    )


def resolved(args: argparse.Namespace, overrides: Sequence[str]) -> RunSettings:
    """The settings that :func:`add_config_arguments` and further words name."""
    from muscle_hf.pipeline.steps import hush

    hush()
    settings = load_settings(find_recipe(args.config), overrides)
    if not args.smoke:
        return settings
    from muscle_hf.pipeline.smoke import smoke_settings

    return smoke_settings(settings)


# ---- accelerate launch ----


@dataclass(frozen=True)
class Processes:
    """The processes that do a run: an accelerate configuration, if there is one; how many; whether on the CPU; and the
    mixed precision of the settings, which one of the user's own configurations overrides."""

    config: Path | None = None
    number: int = 1
    on_cpu: bool = False
    mixed_precision: str | None = None

    @classmethod
    def of(cls, args: argparse.Namespace, settings: RunSettings) -> Processes:
        """Those that :func:`add_launch_arguments` and the settings name."""
        if "LOCAL_RANK" in os.environ:
            if args.accelerate_config or args.num_processes:
                raise MuscleError("accelerate has launched this already; leave out --accelerate-config")
            return cls()
        config = None if args.accelerate_config is None else accelerate_config(args.accelerate_config)
        on_cpu = bool(settings.training.get("use_cpu"))
        if args.num_processes is not None:
            number = args.num_processes
        elif config is not None:
            number = int(read_yaml(config).get("num_processes", 1))
            number = min(number, 2) if on_cpu and args.smoke else number
        else:
            number = 1 if on_cpu else max(1, _gpus())
        if number < 1:
            raise MuscleError(f"--num-processes is {number}; it must be at least 1")
        own = config is not None and config.parent != bundled("recipes") / "accelerate"
        half = next((name for name in ("bf16", "fp16") if settings.training.get(name)), "no")
        return cls(config, number, on_cpu, None if own else half)

    @property
    def launched(self) -> bool:
        """Whether ``accelerate launch`` starts them; otherwise this one does the run."""
        return self.config is not None or self.number > 1

    def launch(self, arguments: Sequence[str]) -> int:
        """Run the recipe script of a whole run under ``accelerate launch``; gives its exit code.

        Ctrl-C (and SIGTERM, SIGHUP) go to the processes that train, which save a checkpoint and end by themselves.
        """
        command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", *self._options()]
        command += [str(bundled("recipes") / "run.py"), *arguments]
        # A session of its own: the terminal's Ctrl-C would reach the launcher too, which kills the processes before
        # they have saved.
        return _wait(subprocess.Popen(command, env=self._environment(), start_new_session=True))

    def _options(self) -> list[str]:
        content = {} if self.config is None else read_yaml(self.config)
        options, free_port = ["--num_processes", str(self.number)], ["--main_process_port", "0"]
        if self.on_cpu:
            if content.get("distributed_type") in ("FSDP", "DEEPSPEED"):
                plain = f"{self.number} processes on the CPU as under ddp."
                report(f"Without GPUs nothing is sharded: {plain}", file=sys.stderr)
            config = accelerate_config("ddp" if self.number > 1 else "one_gpu")
            return ["--config_file", str(config), *options, "--mixed_precision", "no", *free_port]
        machines, gpus = int(content.get("num_machines", 1)), _gpus()
        if (here := self.number // machines) > max(1, gpus):
            number = f"--num-processes {gpus}" if gpus else "--smoke, or --use_cpu true for two processes on the CPU"
            raise MuscleError(f"{here} processes need a GPU each, and there are {gpus} here; give {number}")
        how = ["--multi_gpu", "--num_machines", "1"] if self.config is None else ["--config_file", str(self.config)]
        # accelerate's own default configuration may name another, which Trainer would follow unseen.
        precision = [] if self.mixed_precision is None else ["--mixed_precision", self.mixed_precision]
        return [*how, *options, *precision, *(free_port if machines == 1 else [])]

    def _environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        if self.on_cpu:
            environment["ACCELERATE_USE_CPU"] = "true"
        elif self.number == 1:
            # One process that sees several GPUs would replicate the model over them.
            environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        return environment


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _wait(launcher: subprocess.Popen) -> int:
    import psutil

    from muscle_hf.pipeline.interrupt import SIGNALS, handling

    asked = 0

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        processes = psutil.Process(launcher.pid).children() if launcher.poll() is None else []
        if processes and asked < 3:
            for process in processes:
                process.send_signal(signal.SIGINT)
        else:
            launcher.terminate()

    with handling(forward, (*SIGNALS, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))):
        code = launcher.wait()
    return INTERRUPTED if asked else code
