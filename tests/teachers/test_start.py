"""The student that starts from v1's adapter on v2's base: what it is, what its teachers are, what is refused."""

from __future__ import annotations

import builders
import pytest
import torch
from peft import PeftModel

from muscle_hf import MuscleError
from muscle_hf.pipeline.config import LoraSettings, ModelSettings
from muscle_hf.pipeline.steps import check_start
from muscle_hf.teachers import AdapterTeacher, ModelTeacher
from muscle_hf.teachers.adapters import STUDENT_ADAPTER, adapter_parameters
from muscle_hf.teachers.start import start_from

V1, V2 = 1, 2


def task_model(base: int, seed: int, **lora) -> PeftModel:
    return builders.with_lora(builders.llama(base), seed, **lora)


def student_of(trainer) -> dict[str, torch.Tensor]:
    return {
        key: weight.detach().clone() for key, weight in adapter_parameters(trainer.student, STUDENT_ADAPTER).items()
    }


@pytest.mark.parametrize("same_base", [False, True])
def test_the_student_is_v1s_adapter_on_v2s_base_and_the_teachers_are_the_task_models(same_base, tmp_path):
    batch = builders.collate(builders.rows())
    v1_base = V2 if same_base else V1
    of = {
        "old": builders.logits_without_trainer(task_model(v1_base, 10), batch),
        "new": builders.logits_without_trainer(task_model(V2, 20), batch),
        "student": builders.logits_without_trainer(task_model(V2, 10), batch),
    }
    trainer = builders.trainer(tmp_path, task_model(V2, 20), task_model(v1_base, 10), start_from="old")
    assert isinstance(trainer.teachers["old"], AdapterTeacher if same_base else ModelTeacher)
    for role in ("old", "new"):
        torch.testing.assert_close(trainer.teachers[role].logits(batch), of[role])
    torch.testing.assert_close(builders.logits_without_trainer(trainer.student, batch), of["student"])
    assert not torch.allclose(of["student"], of["new"], atol=1e-2)
    teachers = {
        role: {k: w.clone() for k, w in trainer.teachers[role].adapter_weights().items()}
        for role in of
        if role != "student"
    }
    before = student_of(trainer)
    trainer.train()
    assert any(not torch.equal(weight, before[key]) for key, weight in student_of(trainer).items())
    for role, weights in teachers.items():
        assert all(
            torch.equal(weight, weights[key]) for key, weight in trainer.teachers[role].adapter_weights().items()
        )


def test_it_trains_towards_the_teachers(tmp_path):
    """Not only copied: it comes nearer to the mean of both."""
    settings = {"start_from": "old", "preset": "consensus", "learning_rate": 0.02, "max_steps": 60}
    trainer = builders.trainer(tmp_path, task_model(V2, 20), task_model(V1, 10), **settings)
    batch = builders.collate(builders.rows())

    def distance() -> float:
        mean = torch.stack([(trainer.teachers[role].logits(batch) / 2).softmax(-1) for role in ("old", "new")]).mean(0)
        student = (builders.logits_without_trainer(trainer.student, batch) / 2).log_softmax(-1)
        return (mean * (mean.log() - student)).sum(-1)[batch["labels"].roll(-1, 1) != -100].mean().item()

    start = distance()
    trainer.train()
    assert distance() < 0.5 * start


def test_its_dropout_stays_v2s(tmp_path):
    trainer = builders.trainer(
        tmp_path, task_model(V2, 20, lora_dropout=0.25), task_model(V1, 10, lora_dropout=0.5), start_from="old"
    )
    assert trainer.student.peft_config[STUDENT_ADAPTER].lora_dropout == 0.25


def test_it_resumes_from_its_checkpoint_and_not_from_v1(tmp_path):
    settings = {"start_from": "old", "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = builders.trainer(tmp_path, task_model(V2, 20), task_model(V1, 10), **settings)
    whole.train()
    resumed = builders.trainer(tmp_path, task_model(V2, 20), task_model(V1, 10), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for key, weight in student_of(resumed).items():
        torch.testing.assert_close(weight, student_of(whole)[key])


@pytest.mark.parametrize(
    ("new", "old", "message"),
    [
        (
            {},
            {"r": 8},
            r"14 of 14 layers have other shapes in the adapters of v1 and v2 \(.*: \[8, 16\] and \[4, 16\]\)",
        ),
        ({}, {"lora_alpha": 16}, "v1's adapter has lora_alpha=16, v2's lora_alpha=8"),
        ({}, {"use_rslora": True}, "use_rslora=True"),
        ({"target_modules": ["q_proj"]}, {}, "12 layers are in one of the adapters of v1 and v2 alone"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(new, old, message, tmp_path):
    with pytest.raises(MuscleError, match=f"start_from is 'old', but .*{message}.*leave start_from at 'new'"):
        builders.trainer(tmp_path, task_model(V2, 20, **new), task_model(V1, 10, **old), start_from="old")


def test_what_has_no_adapter_of_its_own_is_refused(tmp_path):
    with pytest.raises(MuscleError, match="old_model has no adapter that v2's base could get"):
        builders.trainer(tmp_path, None, task_model(V1, 10).merge_and_unload(), start_from="old")
    merged, fresh = task_model(V2, 20).merge_and_unload(), task_model(V2, 20).peft_config["default"]
    with pytest.raises(MuscleError, match="v2's task training is merged into model"):
        builders.trainer(tmp_path, merged, peft_config=fresh, start_from="old")
    with pytest.raises(MuscleError, match="start_from is 'v1'; choose one of new, old"):
        builders.trainer(tmp_path, start_from="v1")


def test_nothing_is_changed_by_a_start_that_is_refused():
    model = task_model(V2, 20)
    before = builders.weights_of(model)
    with pytest.raises(MuscleError):
        start_from(model, task_model(V1, 10, lora_alpha=1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_bases_of_two_sizes_are_told_from_their_configurations(tmp_path):
    for name, shape in {
        "v1": {},
        "v2": {},
        "deeper": {"num_hidden_layers": 2},
        "wider": {"intermediate_size": 48},
    }.items():
        builders.llama(0, **shape).save_pretrained(tmp_path / name)
    sides = {name: ModelSettings(str(tmp_path / name)) for name in ("v1", "v2", "deeper", "wider", "nowhere")}
    lora = LoraSettings()
    check_start(sides["v1"], sides["v2"], lora)
    with pytest.raises(MuscleError, match="7 layers are in one of the bases of v1 and v2 alone"):
        check_start(sides["v1"], sides["deeper"], lora)
    with pytest.raises(MuscleError, match=r"3 of 7 layers have other shapes in the bases .*\[32, 16\] and \[48, 16\]"):
        check_start(sides["v1"], sides["wider"], lora)
    # Only where the adapter is: as told, or as v1's adapter has it.
    attention = ["q_proj", "v_proj"]
    check_start(sides["v1"], sides["wider"], LoraSettings(target_modules=attention))
    task_model(V1, 10, target_modules=attention).save_pretrained(tmp_path / "adapter")
    trained = ModelSettings(str(tmp_path / "v1"), adapter=str(tmp_path / "adapter"))
    check_start(trained, sides["wider"], lora)
    with pytest.raises(MuscleError, match="1 of 1 layers have other shapes"):
        check_start(sides["v1"], sides["wider"], LoraSettings(target_modules=r".*\.0\.mlp\.up_proj"))
    with pytest.raises(MuscleError, match="nowhere"):
        check_start(sides["v1"], sides["nowhere"], lora)
