"""Ctrl-C: the step is finished, a checkpoint saved, and the same command goes on from it."""

from __future__ import annotations

import signal
import time

import builders
import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

from muscle_hf import demo
from muscle_hf.cli.main import main
from muscle_hf.demo.run import demo_settings, demo_splits
from muscle_hf.pipeline import steps
from muscle_hf.pipeline.data import Splits
from muscle_hf.pipeline.interrupt import Interrupted, stop_on_interrupt
from muscle_hf.pipeline.run import Run


class Press(TrainerCallback):
    """Presses Ctrl-C during a step."""

    def __init__(self, step, times=1, number=signal.SIGINT, pause=0.0):
        self.step, self.times, self.number, self.pause = step, times, number, pause

    def on_substep_end(self, args, state, control, **kwargs):
        self.on_pre_optimizer_step(args, state, control)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            for pressed in range(self.times):
                time.sleep(self.pause if pressed else 0)
                signal.raise_signal(self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_training_stops_after_the_step_and_saves(number, tmp_path, capsys):
    before = signal.getsignal(number)
    trainer = builders.trainer(tmp_path, max_steps=5, callbacks=[Press(2, number=number)])
    with pytest.raises(Interrupted, match=r"v2 was stopped at step 2 of 5.*goes on from there"):  # noqa: SIM117
        with stop_on_interrupt(trainer, "v2"):
            trainer.train()
    assert (tmp_path / "checkpoint-2" / "trainer_state.json").is_file()
    assert "once more stops at once" in capsys.readouterr().err
    assert signal.getsignal(number) is before


def test_a_second_one_stops_at_once(tmp_path):
    trainer = builders.trainer(tmp_path, max_steps=5, callbacks=[Press(2, times=2, pause=1.1)])
    with pytest.raises(KeyboardInterrupt), stop_on_interrupt(trainer, "v2"):
        trainer.train()
    assert not (tmp_path / "checkpoint-2").exists()


def test_a_signal_that_arrives_twice_is_one(tmp_path):
    trainer = builders.trainer(tmp_path, max_steps=5, callbacks=[Press(2, times=2, number=signal.SIGTERM)])
    with pytest.raises(Interrupted, match="at step 2 of 5"), stop_on_interrupt(trainer, "v2"):
        trainer.train()
    assert (tmp_path / "checkpoint-2" / "trainer_state.json").is_file()


def test_what_ends_an_epoch_is_not_done_where_training_stops_within_it(tmp_path):
    class Counted(TrainerCallback):
        saved = evaluated = 0

        def on_save(self, args, state, control, **kwargs):
            self.saved += 1

        def on_evaluate(self, args, state, control, **kwargs):
            self.evaluated += 1

    counted = Counted()
    epochs = {"eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 2, "max_steps": -1}
    settings = {**epochs, "eval_dataset": builders.rows(4), "per_device_train_batch_size": 1}
    trainer = builders.trainer(tmp_path, callbacks=[Press(2), counted], **settings)
    with pytest.raises(Interrupted), stop_on_interrupt(trainer, "v2"):
        trainer.train()
    assert (counted.saved, counted.evaluated, trainer.state.best_metric) == (1, 0, None)


def test_at_the_last_step_there_is_nothing_to_stop(tmp_path):
    trainer = builders.trainer(tmp_path, max_steps=2, callbacks=[Press(2)])
    with stop_on_interrupt(trainer, "v2"):
        trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    def settings(name):
        made = demo_settings("routing", 0, tmp_path / name)
        made.training |= {"max_steps": 4, "per_device_train_batch_size": 2, "use_cpu": True}
        made.control = False
        return made

    whole = demo_splits("routing", 0)
    splits = Splits(whole.train[:8], [], whole.test[:4])

    def go(name):
        return Run(settings(name), demo.TASKS["routing"], splits, lambda line: None).whole()

    expected = go("undisturbed")

    quiet = steps.QuietProgress

    class Disturbed(quiet, Press):
        def __init__(self, name):
            quiet.__init__(self, name)
            Press.__init__(self, 2 if name == "MUSCLE" else 99)

    monkeypatch.setattr(steps, "QuietProgress", Disturbed)
    with pytest.raises(Interrupted, match="MUSCLE was stopped at step 2 of 4"):
        go("disturbed")
    assert not (tmp_path / "disturbed" / "muscle" / "adapter_model.safetensors").exists()
    monkeypatch.setattr(steps, "QuietProgress", quiet)
    assert go("disturbed") == expected
    one, other = (
        load_file(tmp_path / name / "muscle" / "adapter_model.safetensors") for name in ("undisturbed", "disturbed")
    )
    assert all((one[key] == other[key]).all() for key in one)


def test_the_command_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    from muscle_hf.pipeline import run as module

    def stopped(settings, say):
        raise Interrupted("MUSCLE was stopped at step 2 of 4; the same command goes on from there")

    monkeypatch.setattr(module, "run", stopped)
    words = ["--output_dir", str(tmp_path), "--smoke"]
    assert main(["train", "--config", "paper/phi_1_to_1.5/piqa", *words]) == 130
    assert "goes on from there" in capsys.readouterr().err
