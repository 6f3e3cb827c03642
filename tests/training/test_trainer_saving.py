"""What is saved: one standard adapter with its provenance, checkpoints that resume bit for bit, nothing secret."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import builders
import pytest
import torch
from builders import with_lora
from launching import launched
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from muscle_hf import MuscleError
from muscle_hf.teachers.weights import folder_hash
from muscle_hf.training.provenance import read_provenance

CARD = {"README.md", "muscle_card.json", "card_curves.svg"}
TOKEN = "hf_ThisIsNotARealTokenButItMustNotBeSaved"


def on_disk(root: Path, name: str, seed: int, **lora):
    """A base saved in a folder and a task model on it, as a user has them."""
    if not (root / name).is_dir():
        builders.llama(seed).save_pretrained(root / name)
        with_lora(AutoModelForCausalLM.from_pretrained(root / name), 10 * seed, **lora).save_pretrained(
            root / f"{name}-task"
        )
    base = AutoModelForCausalLM.from_pretrained(root / name)
    return PeftModel.from_pretrained(base, root / f"{name}-task", is_trainable=True)


def run(folder: Path, models: Path, *, lora=None, **settings):
    """A trainer whose models are in ``models``; 16 rows, 4 steps an epoch."""
    model = on_disk(models, "v2", 2, **(lora or {}))
    on_disk(models, "v1", 1)
    rows = builders.half_right(builders.rows(16), model)
    defaults = {
        "train_dataset": rows,
        "eval_dataset": rows[:4],
        "max_steps": 10,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    return builders.trainer(folder, model, models / "v1-task", **{**defaults, **settings})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that is over, saved at the root of its folder."""
    root = tmp_path_factory.mktemp("finished")
    trainer = run(root / "run", root, hub_token=TOKEN, max_steps=4, eval_strategy="steps", eval_steps=2)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    return root, trainer


# ---- The adapter ----


def test_saved_adapter_loads_with_plain_peft_and_gives_equal_logits(finished):
    root, trainer = finished
    base = AutoModelForCausalLM.from_pretrained(root / "v2")
    model = PeftModel.from_pretrained(base, root / "run")
    batch = builders.collate(builders.rows())
    expected = builders.logits_without_trainer(trainer.model, batch)
    assert torch.equal(builders.logits_without_trainer(model, batch), expected)
    merged = builders.logits_without_trainer(model.merge_and_unload(), batch)
    assert torch.allclose(merged, expected, atol=1e-4)


def test_saved_folder_holds_one_adapter_and_nothing_of_the_teachers(finished):
    root, _ = finished
    for folder in (root / "run", root / "run" / "checkpoint-3"):
        names = {path.name for path in folder.iterdir()}
        state = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
        adapter = {"adapter_config.json", "adapter_model.safetensors", "muscle_provenance.json"}
        kept = adapter | state if "checkpoint" in folder.name else adapter | CARD | {"trainer_state.json"}
        assert {name for name in names if not name.startswith("checkpoint-")} == kept
        saved = load_file(folder / "adapter_model.safetensors")
        task = load_file(root / "v2-task" / "adapter_model.safetensors")
        assert {name: tensor.shape for name, tensor in saved.items()} == {n: t.shape for n, t in task.items()}
        assert all(not torch.equal(saved[name], task[name]) for name in saved)
        settings = json.loads((folder / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == str(root / "v2")
        assert settings["inference_mode"]


@pytest.mark.parametrize(
    "lora", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["lm_head"]}]
)
def test_other_kinds_of_adapter_are_saved_whole(lora, tmp_path):
    trainer = run(tmp_path / "run", tmp_path, lora=lora, max_steps=2)
    trainer.train()
    trainer.save_model()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "v2"), tmp_path / "run")
    batch = builders.collate(builders.rows())
    expected = builders.logits_without_trainer(trainer.model, batch)
    assert torch.equal(builders.logits_without_trainer(model, batch), expected)


def test_fresh_adapter_on_a_merged_model_is_saved_likewise(tmp_path):
    builders.llama(2).save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    peft_config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = builders.trainer(tmp_path / "run", merged, peft_config=peft_config)
    trainer.train()
    trainer.save_model()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), tmp_path / "run")
    batch = builders.collate(builders.rows())
    expected = builders.logits_without_trainer(trainer.model, batch)
    assert torch.equal(builders.logits_without_trainer(model, batch), expected)


def test_the_token_is_in_no_file(finished):
    root, trainer = finished
    assert trainer.args.hub_token == TOKEN
    files = [path for path in (root / "run").rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not any(TOKEN.encode() in path.read_bytes() for path in files)
    assert not list((root / "run").rglob("training_args.bin"))


def test_tokenizer_is_saved(shared_dir, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_dir / "models" / "stories260k")
    trainer = builders.trainer(
        tmp_path,
        with_lora(builders.llama(2, vocab_size=len(tokenizer)), 20),
        with_lora(builders.llama(2, vocab_size=len(tokenizer)), 10),
        processing_class=tokenizer,
    )
    trainer.save_model()
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()
    assert read_provenance(tmp_path)["tokenizer"]["tokens"] == len(tokenizer)


# ---- Provenance ----


def test_provenance_tells_the_truth(finished):
    root, trainer = finished
    told = read_provenance(root / "run")
    for role, name in (("old", "v1"), ("new", "v2")):
        assert told[role]["base"]["sha256"] == folder_hash(root / name)
        assert told[role]["base"]["name"] == name
        assert told[role]["base"]["architecture"] == "LlamaForCausalLM"
    file = (root / "run" / "adapter_model.safetensors").read_bytes()
    assert told["adapter_file_sha256"] == hashlib.sha256(file).hexdigest()
    assert told["old"]["adapter"]["name"] == "v1-task"
    hashes = {told["old"]["adapter"]["sha256"], told["new"]["adapter"]["sha256"], told["adapter_sha256"]}
    assert len(hashes) == 3
    assert told["objective"] == {
        "mask": "student_wrong",
        "transfer_mask": "mean",
        "divergence": "kl",
        "blend": "probabilities",
        "temperature": 2.0,
        "compatibility_weight": 1.0,
        "scale_by_temperature_squared": False,
        "trained_tokens": "labels",
    }
    assert told["training"]["max_steps"] == 4
    assert told["training"]["learning_rate"] == 1e-2
    assert not {"preset", "mask", "transfer_mask", "calibrate_teachers"} & told["training"].keys(), "defaults"
    assert told["data"]["train"]["rows"] == 16
    assert told["packages"]["torch"] == torch.__version__
    last = next(entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry)
    assert told["metrics"]["eval_loss"] == last["eval_loss"]
    text = (root / "run" / "muscle_provenance.json").read_text()
    assert str(root) not in text, "no places on this machine"
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_provenance_tells_what_was_set_beside_a_preset(finished, tmp_path):
    root, _ = finished
    preset = run(tmp_path, root, preset="consensus").provenance.training
    assert (preset["preset"], preset["mask"]) == ("consensus", "mean")
    assert "transfer_mask" not in preset and "calibrate_teachers" not in preset
    beside = run(tmp_path, root, preset="calibrated_consensus", calibrate_teachers=False).provenance.training
    assert (beside["preset"], beside["calibrate_teachers"]) == ("calibrated_consensus", False)


def test_provenance_of_the_same_content_is_the_same(finished, tmp_path):
    root, _ = finished
    first, again = read_provenance(root / "run"), run(tmp_path, root, max_steps=4).provenance.to_dict()
    for part in ("old", "new", "data", "objective", "packages"):
        assert first[part] == again[part]
    rows = builders.rows(16)
    rows[3]["labels"][-1] += 1
    other = run(tmp_path, root, max_steps=4, train_dataset=rows).provenance.to_dict()
    assert other["data"]["train"]["sha256"] != first["data"]["train"]["sha256"]


def test_a_folder_without_provenance_is_named(tmp_path):
    with pytest.raises(MuscleError, match="no muscle_provenance"):
        read_provenance(tmp_path)


# ---- Resuming ----

DROPOUT = {"lora": {"lora_dropout": 0.3}}


def final_state(trainer) -> dict[str, torch.Tensor]:
    weights = {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}
    moments = trainer.optimizer.state_dict()["state"]
    return {**weights, **{f"{i} {key}": value for i, state in moments.items() for key, value in state.items()}}


def assert_bit_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    root = tmp_path_factory.mktemp("uninterrupted")
    trainer = run(root / "run", root, **DROPOUT)
    trainer.train()
    return root, final_state(trainer), trainer.state.log_history


@pytest.mark.slow
def test_killed_in_mid_epoch_and_resumed_equals_uninterrupted(uninterrupted, tmp_path):
    root, expected, history = uninterrupted
    launched([__file__, str(tmp_path), str(root)], processes=1, code=-signal.SIGKILL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-6"]
    trainer = run(tmp_path, root, **DROPOUT)
    trainer.train(resume_from_checkpoint=True)
    assert_bit_equal(final_state(trainer), expected)
    logged = [
        {k: v for k, v in entry.items() if k in ("loss", "kl_old", "step")} for entry in trainer.state.log_history
    ]
    assert logged[:10] == [
        {k: v for k, v in entry.items() if k in ("loss", "kl_old", "step")} for entry in history[:10]
    ]


class Killed(TrainerCallback):
    """SIGKILL in the middle of the second epoch, two steps after a checkpoint."""

    def on_substep_end(self, args, state, control, **kwargs):
        self.on_step_begin(args, state, control)

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 7:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("damage", ["no state", "cut-off state", "only a stage"])
def test_partial_checkpoint_is_passed_over(damage, uninterrupted, tmp_path):
    root, expected, _ = uninterrupted
    shutil.copytree(root / "run", tmp_path / "run")
    for number in (9, 10):
        broken = tmp_path / "run" / f"checkpoint-{number}"
        if damage == "only a stage":
            shutil.rmtree(broken, ignore_errors=True)
            (broken / ".saving-x").mkdir(parents=True)
        elif damage == "no state":
            (broken / "trainer_state.json").unlink(missing_ok=True)
        elif broken.is_dir():
            (broken / "trainer_state.json").write_text('{"global_step": ')
    trainer = run(tmp_path / "run", root, **DROPOUT)
    with pytest.raises(MuscleError, match="not a checkpoint that was written to its end"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-9"))
    trainer.train(resume_from_checkpoint=True)
    assert_bit_equal(final_state(trainer), expected)
    assert not list((tmp_path / "run").rglob(".saving-*"))


def test_nothing_to_resume_from(tmp_path, finished):
    trainer = run(tmp_path, finished[0])
    with pytest.raises(MuscleError, match="no checkpoint to resume from"):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("role", ["old", "new"])
def test_resuming_against_other_teachers_is_refused(role, uninterrupted, tmp_path):
    root, _, _ = uninterrupted
    shutil.copytree(root, tmp_path / "models", ignore=shutil.ignore_patterns("run"))
    name = {"old": "v1", "new": "v2"}[role]
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / name)
    with_lora(base, 77).save_pretrained(tmp_path / "models" / f"{name}-task")
    trainer = run(tmp_path / "run", tmp_path / "models", **DROPOUT)
    with pytest.raises(MuscleError, match=f"trained with another {role} model: its adapter has the content hash"):
        trainer.train(resume_from_checkpoint=str(root / "run" / "checkpoint-6"))


def test_resuming_leaves_the_teachers_alone(uninterrupted, tmp_path):
    root, expected, _ = uninterrupted
    shutil.copytree(root / "run", tmp_path / "run")
    trainer = run(tmp_path / "run", root, **DROPOUT)
    before = {name: tensor.clone() for name, tensor in trainer.teachers["new"].adapter_weights().items()}
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    after = trainer.teachers["new"].adapter_weights()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert_bit_equal(final_state(trainer), expected)


# ---- A full disk ----


class FullDisk(TrainerCallback):
    """From a step on, no file may grow beyond a size: writing fails as on a full disk."""

    def __init__(self, step: int, size: int):
        self.step, self.size = step, size

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            limit_files(self.size)


def limit_files(size: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


@pytest.fixture
def limited():
    yield
    limit_files(resource.getrlimit(resource.RLIMIT_FSIZE)[1])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


WIDE = {"lora": {"r": 128}}  # about 180 kB, its optimizer twice that: more than what pytest captures


@pytest.mark.parametrize("size", [100_000, 250_000], ids=["at the adapter", "at the optimizer"])
def test_full_disk_leaves_the_previous_checkpoint_whole(size, limited, tmp_path):
    trainer = run(tmp_path / "run", tmp_path, **WIDE, save_total_limit=1, callbacks=[FullDisk(4, size)])
    with pytest.raises(MuscleError, match=r"checkpoint-6 could not be saved.*last whole checkpoint is .*checkpoint-3"):
        trainer.train()
    limit_files(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-3"]
    again = run(tmp_path / "run", tmp_path, **WIDE)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 10


def test_full_disk_ends_the_plain_training_of_a_run_in_the_same_way(limited, tmp_path):
    from muscle_hf.pipeline.steps import adapter_saving

    model = on_disk(tmp_path, "v2", 2, **WIDE["lora"])
    arguments = TrainingArguments(tmp_path / "run", max_steps=4, save_steps=2, report_to="none", use_cpu=True)
    rows, tokenizer = builders.rows(8), builders.tokenizer()
    given = {"train_dataset": rows, "processing_class": tokenizer, "data_collator": builders.collate}
    trainer = adapter_saving(Trainer)(model, arguments, **given)
    trainer.add_callback(FullDisk(2, 250_000))
    with pytest.raises(MuscleError, match=r"checkpoint-4.*checkpoint-2"):
        trainer.train()
    limit_files(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-2"]


def test_full_disk_at_the_final_save_leaves_the_saved_adapter_whole(limited, tmp_path):
    trainer = run(tmp_path / "run", tmp_path, **WIDE, save_strategy="no", max_steps=2)
    trainer.save_model()
    before = contents(tmp_path / "run")
    trainer.train()
    limit_files(100_000)
    with pytest.raises(MuscleError, match=r"nothing was saved in .*What was there before is whole"):
        trainer.save_model()
    limit_files(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert contents(tmp_path / "run") == before
    trainer.save_model()
    assert contents(tmp_path / "run")["adapter_model.safetensors"] != before["adapter_model.safetensors"]


def test_full_disk_while_an_earlier_runs_checkpoint_is_replaced(limited, tmp_path):
    run(tmp_path / "run", tmp_path, **WIDE, max_steps=3).train()
    before = contents(tmp_path / "run" / "checkpoint-3")
    trainer = run(tmp_path / "run", tmp_path, **WIDE, learning_rate=0.5, callbacks=[FullDisk(2, 250_000)])
    with pytest.raises(MuscleError, match="checkpoint-3 could not be saved"):
        trainer.train()
    assert contents(tmp_path / "run" / "checkpoint-3") == before
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-3"]


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), **DROPOUT, callbacks=[Killed()]).train()
