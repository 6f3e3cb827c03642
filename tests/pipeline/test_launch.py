"""`muscle-hf train` with several processes: the whole command, on the CPU, as a user types it; and Ctrl-C in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from muscle_hf.bundled import bundled
from muscle_hf.cli.main import main
from muscle_hf.pipeline.smoke import tiny_model
from muscle_hf.pipeline.table import load_result_predictions

pytest.importorskip("trl")
# Enough that some seconds are left from the first one on.
STEPS = 150
SHOWN = re.compile(rf"\| ([1-9]\d*)/{STEPS}")
COMMAND = [sys.executable, "-m", "muscle_hf.cli.main"]
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")


@pytest.fixture
def config(tmp_path):
    """A run of many short steps of the compatibility adapter, on the CPU."""
    bases = {name: {"base": str(tiny_model(tmp_path / name, seed))} for name, seed in (("old", 1), ("new", 2))}
    rows = [
        {"question": f"{i} pears and {i} plums?", "answer": f"{i} + {i} = {2 * i}\n#### {2 * i}"} for i in range(24)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        **bases,
        "task": "gsm8k",
        "output_dir": str(tmp_path / "out"),
        "data": {
            "source": str(tmp_path / "rows.jsonl"),
            "train": {"split": "a", "limit": 20},
            "test": {"split": "b", "start": 20},
        },
        "lora": {"r": 4},
        "max_new_tokens": 4,
        "control": False,
        "training": {"use_cpu": True, "per_device_train_batch_size": 2, "max_steps": STEPS},
        "task_training": {"max_steps": 1},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "run.yaml"


@pytest.mark.slow
@without_gpu
def test_a_whole_recipe_in_two_processes(tmp_path, capfd):
    words = ["--config", "paper/phi_1_to_1.5/piqa", "--smoke", "--output_dir", str(tmp_path), "--control", "false"]
    assert main(["train", *words, "--accelerate-config", "fsdp2"]) == 0
    printed = capfd.readouterr()
    assert "nothing is sharded: 2 processes" in printed.err
    assert printed.out.count("| MUSCLE |") == 1, "the first process alone speaks"
    assert printed.out.count("Compatibility adapter") == 1
    together = load_result_predictions(tmp_path / "smoke")
    shutil.rmtree(tmp_path / "smoke" / "predictions")
    assert main(["train", *words]) == 0
    assert "Compatibility adapter: done before" in capfd.readouterr().out
    alone = load_result_predictions(tmp_path / "smoke")
    for name in ("old", "new", "muscle"):
        assert [p.id for p in together[name]] == ["8", "9", "10", "11"], "both processes' answers, in order"
        for of_two, of_one in zip(together[name], alone[name], strict=True):
            assert of_two.prediction == of_one.prediction
            assert of_two.log_likelihoods == pytest.approx(of_one.log_likelihoods)
        assert (tmp_path / "smoke" / name / "adapter_model.safetensors").is_file()


@pytest.mark.slow
@without_gpu
@pytest.mark.skipif(os.name != "posix", reason="signals are sent to a process group, as a terminal does")
def test_ctrl_c_saves_a_checkpoint_in_all_processes_and_the_run_goes_on(config, capfd):
    command = [*COMMAND, "train", "--config", str(config), "--accelerate-config", "ddp", "--num-processes", "2"]
    log = config.with_name("log.txt")
    with log.open("w") as file:
        started = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    until = time.monotonic() + 240
    while not SHOWN.search(log.read_text()) and started.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert started.poll() is None, log.read_text()
    os.killpg(started.pid, signal.SIGINT)
    code = started.wait(timeout=240)
    printed = log.read_text()
    assert code == 130, printed
    assert printed.count("Stopping after this step") == printed.count("was stopped at step") == 1, printed
    assert "The same command goes on from there" in printed
    assert "Traceback" not in printed
    folder = Path(yaml.safe_load(config.read_text())["output_dir"], "muscle")
    (checkpoint,) = folder.glob("checkpoint-*")
    step = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
    assert 0 < step < STEPS
    assert not (folder / "adapter_model.safetensors").exists()
    # Also in one process.
    assert main(["train", "--config", str(config)]) == 0
    printed = capfd.readouterr()
    assert min(int(shown) for shown in SHOWN.findall(printed.err)) >= step
    assert "MUSCLE" in printed.out
    assert (folder / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "precision"),
    [
        (["--num-processes", "2"], ["no"]),
        (["--accelerate-config", "ddp"], ["no"]),
        (["--accelerate-config", "ddp", "--bf16", "true"], ["bf16"]),
        (["--accelerate-config", "own.yaml"], []),
    ],
)
def test_the_settings_say_in_which_precision_processes_train(words, precision, config, monkeypatch):
    """accelerate's own configuration, or that of a recipe, may name another."""
    seen = []

    class Launched:
        def __init__(self, command, **how):
            seen.extend(command)

        def wait(self, timeout=None):
            return 0

        def poll(self):
            return 0

    shutil.copy(bundled("recipes") / "accelerate" / "ddp.yaml", config.with_name("own.yaml"))
    monkeypatch.chdir(config.parent)
    monkeypatch.setattr("muscle_hf.pipeline.launch._gpus", lambda: 8)
    monkeypatch.setattr("muscle_hf.pipeline.launch.subprocess.Popen", Launched)
    assert main(["train", "--config", str(config), "--use_cpu", "false", *words]) == 0
    assert [seen[at + 1] for at, word in enumerate(seen) if word == "--mixed_precision"] == precision


@without_gpu
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ddp"], "8 processes need a GPU each, and there are 0 here; give --smoke"),
        (["fsdp2", "--num-processes", "3"], "3 processes need a GPU each"),
        (["ddp", "--num-processes", "0"], "--num-processes is 0"),
        (["dpp"], "there is no accelerate configuration 'dpp'.*ddp"),
    ],
)
def test_what_cannot_be_launched_is_said_before_anything_is_done(words, message, config, capsys):
    words = ["--config", str(config), "--accelerate-config", *words]
    assert main(["train", *words, "--training.use_cpu", "false"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (config.parent / "out").exists()


@pytest.mark.skipif(shutil.which("bash") is None, reason="slurm.sh is for bash")
def test_the_slurm_script_starts_what_accelerate_understands(tmp_path):
    """Slurm itself is not here: its two commands are stood in for, and the launcher tells its arguments."""
    from accelerate.commands.launch import launch_command_parser

    told = "import json, sys; print(json.dumps(sys.argv[1:]))"
    commands = {
        "scontrol": "echo node1; echo node2",
        "srun": 'exec "$@"',
        "accelerate": f"exec {sys.executable} -c '{told}' \"$@\"",
    }
    for name, text in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_NODEID": "1"}
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    script = bundled("recipes") / "accelerate" / "slurm.sh"
    words = ["bash", str(script), "paper/phi_1_to_1.5/piqa", "--card.title", "two words"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    args = launch_command_parser().parse_args(json.loads(done.stdout)[1:])
    assert (args.num_machines, args.num_processes, args.machine_rank, args.main_process_ip) == (2, 16, 1, "node1")
    assert args.training_script_args == ["--config", "paper/phi_1_to_1.5/piqa", "--card.title", "two words"]
    for file in (args.config_file, args.training_script):
        assert (script.parents[2] / file).is_file()


def test_what_accelerate_has_launched_launches_nothing(config, capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(["train", "--config", str(config), "--accelerate-config", "ddp"]) == 2
    assert "leave out --accelerate-config" in capsys.readouterr().err


def test_the_plan_counts_the_processes_that_are_asked_for(config, capsys):
    words = ["--config", str(config), "--dry-run", "--accelerate-config", "ddp", "--num-processes", "2"]
    assert main(["train", *words, "--max_steps", "-1"]) == 0
    assert "2 processes" in capsys.readouterr().out
