"""The same batch gives the same loss and gradients however it is cut up, recomputed, compiled or rounded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import builders
import pytest
import torch
from builders import with_lora
from launching import end, launched
from transformers import TrainerCallback

from muscle_hf.teachers import ModelTeacher
from muscle_hf.training.calibration import calibrated


class Gradients(TrainerCallback):
    """Keeps the gradients and the loss of each step."""

    def __init__(self):
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        named = model.named_parameters()
        self.steps.append({name: p.grad.detach().clone() for name, p in named if p.grad is not None})


def half_right_rows():
    # Lengths and numbers of ignored labels differ, so that micro-batches have unequal numbers of trained tokens; one
    # row, and so one micro-batch of one row, has none.
    table = builders.rows(8, seed=3, low=3, high=20)
    for row, ignored in zip(table, (0, 1, 0, 0, 20, 1, 0, 1), strict=True):
        row["labels"][:ignored] = [-100] * len(row["labels"][:ignored])
    return builders.half_right(table, with_lora(builders.llama(2, num_hidden_layers=2), 20))


def run(folder, *, model=None, old=None, rows=None, **settings):
    """Loss and gradients of the first step."""
    gradients = Gradients()
    model = model or with_lora(builders.llama(2, num_hidden_layers=2), 20)
    old = old or with_lora(builders.llama(1, num_hidden_layers=2), 10)
    settings = {"max_steps": 1, "max_grad_norm": 0, "train_sampling_strategy": "sequential", **settings}
    trainer = builders.trainer(
        folder, model, old, train_dataset=rows or half_right_rows(), callbacks=[gradients], **settings
    )
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    return logged, {name.replace("_orig_mod.", ""): grad for name, grad in gradients.steps[0].items()}, trainer


def assert_same(one, other, rel=1e-5):
    (logged, gradients, *_), (logged_too, gradients_too, *_) = one, other
    figures, figures_too = (
        {k: v for k, v in found.items() if builders.is_figure(k)} for found in (logged, logged_too)
    )
    assert figures == pytest.approx(figures_too, rel=rel)
    assert gradients.keys() == gradients_too.keys()
    assert gradients, "there are gradients"
    scale = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        assert torch.allclose(gradient, gradients_too[name], rtol=rel, atol=float(scale) * rel), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"), per_device_train_batch_size=8, compatibility_weight=0.7)


def test_the_example_exercises_both_teachers(whole):
    assert 0 < whole[0]["share_old"] < 1


@pytest.mark.parametrize(("size", "accumulation"), [(4, 2), (2, 4), (3, 3), (1, 8)])
def test_accumulation_gives_the_loss_and_gradients_of_the_whole_batch(size, accumulation, whole, tmp_path):
    settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
    assert_same(whole, run(tmp_path, compatibility_weight=0.7, **settings))


@pytest.mark.slow
def test_two_processes_give_the_loss_and_gradients_of_one(whole, tmp_path):
    launched([__file__, str(tmp_path)])
    results = [json.loads((tmp_path / f"result-{rank}.json").read_text()) for rank in range(2)]
    for result in results:
        gradients = torch.load(tmp_path / f"gradients-{result['rank']}.pt")
        assert_same(whole, (result, gradients))
        assert result["evaluated"] == pytest.approx(evaluated(whole[2]), rel=1e-5)
        assert 0.3 < result["evaluated"]["new"] < 15, "a temperature that can be told from another"
        assert result["predicted_rows"] == 7
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    states = {"rng_state_0.pth", "rng_state_1.pth", "trainer_state.json", "optimizer.pt"}
    assert states <= {path.name for path in (tmp_path / "run" / "checkpoint-1").iterdir()}


def evaluated(trainer, rows=7, batch=3):
    trainer.args.per_device_eval_batch_size = batch
    trainer.eval_dataset = half_right_rows()[:rows]
    metrics = {name: value for name, value in trainer.evaluate().items() if builders.is_figure(name)}
    return {**metrics, **calibrated(trainer)}


def main(folder: Path) -> None:
    logged, gradients, trainer = run(
        folder / "run",
        per_device_train_batch_size=4,
        compatibility_weight=0.7,
        ddp_backend="gloo",
        save_strategy="steps",
        save_steps=1,
    )
    rank = trainer.args.process_index
    result = {**logged, "rank": rank, "evaluated": evaluated(trainer)}
    result["predicted_rows"] = len(trainer.predict(half_right_rows()[:7]).predictions)
    trainer.save_model()
    trainer.train(resume_from_checkpoint=True)  # nothing is left to do, but all of it is read back
    trainer.accelerator.wait_for_everyone()
    unwrapped = {name.removeprefix("module."): gradient for name, gradient in gradients.items()}
    torch.save(unwrapped, folder / f"gradients-{rank}.pt")
    (folder / f"result-{rank}.json").write_text(json.dumps(result))
    end(trainer)


# ---- Evaluation ----


def test_evaluation_does_not_depend_on_the_batch_size(whole):
    expected = evaluated(whole[2], batch=7)
    assert 0 < expected["eval_share_old"] < 1
    for batch in (1, 3, 4):
        assert evaluated(whole[2], batch=batch) == pytest.approx(expected, rel=1e-5)


# ---- Step 0 ----


@pytest.mark.parametrize("settings", [{}, {"bf16": True}], ids=["float32", "bf16 autocast"])
@pytest.mark.parametrize("build", [builders.llama, builders.gemma2, builders.t5, builders.bert_sequences])
def test_at_step_0_the_kl_to_v2_is_exactly_zero(build, settings, tmp_path):
    make_rows = builders.sequence_rows if "bert" in build.__name__ else builders.rows
    model, old = with_lora(build(2), 20), with_lora(build(1), 10)
    rows = builders.half_right(make_rows(), model)
    # Of every token, so that no wrong answer hides a difference.
    trainer = builders.trainer(tmp_path, model, old, mask=follow_v2, train_dataset=rows, eval_dataset=rows, **settings)
    assert trainer.evaluate()["eval_kl_new"] == 0
    trainer.train()
    assert trainer.state.log_history[0]["kl_new"] == 0
    with torch.no_grad():  # a student that differs from its teacher
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.7)
    assert trainer.evaluate()["eval_kl_new"] > 0


def test_teacher_on_its_own_base_computes_in_the_students_precision(tmp_path):
    same_but_apart = builders.llama(2)
    same_but_apart.config.max_position_embeddings += 1  # a difference that changes no number
    trainer = builders.trainer(tmp_path, with_lora(builders.llama(2), 20), with_lora(same_but_apart, 20), bf16=True)
    assert isinstance(trainer.teachers["old"], ModelTeacher)
    trainer.train()
    assert trainer.state.log_history[0]["share_old"] > 0
    assert trainer.state.log_history[0]["kl_old"] == 0


def follow_v2(student, old, new, labels):
    return torch.zeros_like(labels, dtype=torch.bool)


# ---- Recomputation, precision, compilation ----


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_gradients_of_none(reentrant, dropout, tmp_path):
    def models():
        return {
            "model": with_lora(builders.llama(2, num_hidden_layers=2), 20, lora_dropout=dropout),
            "old": with_lora(builders.llama(2, num_hidden_layers=2), 10, lora_dropout=dropout),
        }

    settings = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": reentrant}}
    plain = run(tmp_path / "plain", **models())
    recomputed = run(tmp_path / "recomputed", **models(), **settings)
    assert_same(plain, recomputed, rel=1e-6)


@pytest.mark.parametrize("settings", [{"bf16": True}, {"bf16": True, "activation_checkpointing": True}])
def test_bf16_autocast_is_near_float32_and_keeps_weights_in_float32(settings, tmp_path, whole):
    logged, gradients, trainer = run(
        tmp_path, per_device_train_batch_size=8, compatibility_weight=0.7, mask="always_old", **settings
    )
    expected, exact, _ = run(
        tmp_path / "exact", per_device_train_batch_size=8, compatibility_weight=0.7, mask="always_old"
    )
    assert logged["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert logged["loss"] != expected["loss"], "autocast was on"
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    one, other = (torch.cat([part[name].flatten() for name in exact]) for part in (gradients, exact))
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_loaded_in_half_precision(dtype, tmp_path):
    def task_model(seed):
        base = builders.llama(seed, num_hidden_layers=2).to(dtype)
        model = with_lora(base, seed * 10)
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}, "as PEFT loads adapters"
        return model

    logged, gradients, _ = run(tmp_path, model=task_model(2), old=task_model(1), mask="always_old")
    expected, *_ = run(tmp_path / "exact", mask="always_old")
    assert logged["loss"] == pytest.approx(expected["loss"], rel=0.05)
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())


@pytest.mark.slow
def test_torch_compile_gives_the_same_loss_and_gradients(whole, tmp_path):
    compiled = run(
        tmp_path,
        per_device_train_batch_size=8,
        compatibility_weight=0.7,
        torch_compile=True,
        torch_compile_backend="aot_eager",
    )
    assert_same(whole, compiled, rel=1e-4)
    assert evaluated(compiled[2], rows=8, batch=8)["eval_loss"] > 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
