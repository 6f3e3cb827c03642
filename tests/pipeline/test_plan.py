"""What `muscle-hf train --dry-run` says, against what a run then does."""

from __future__ import annotations

import dataclasses
import json
import math

import paths
import pytest
from transformers import AutoConfig

from muscle_hf import demo
from muscle_hf.cli.main import main
from muscle_hf.pipeline import plan
from muscle_hf.pipeline.config import (
    DataSettings,
    LoraSettings,
    ModelSettings,
    RunSettings,
    SplitSettings,
    TransferSettings,
)
from muscle_hf.pipeline.data import token_lengths
from muscle_hf.pipeline.plan import Spread
from muscle_hf.pipeline.run import Run
from muscle_hf.pipeline.smoke import tiny_model
from muscle_hf.pipeline.steps import task_adapter_model
from muscle_hf.pipeline.teaching import cache_bytes, transfer_rows
from muscle_hf.teachers.adapters import adapter_parameters

SETTINGS = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2, "use_cpu": True}


@pytest.fixture
def small(tmp_path):
    bases = [ModelSettings(str(tiny_model(tmp_path / name, seed))) for name, seed in (("v1", 1), ("v2", 2))]
    rows = [
        {"question": f"{i} pears and {i} plums?", "answer": f"{i} + {i} = {2 * i}\n#### {2 * i}"} for i in range(20)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSettings(str(file), train=SplitSettings("a", 0, 15), test=SplitSettings("b", 15))
    return RunSettings(
        *bases, str(tmp_path / "out"), task="gsm8k", data=data, lora=LoraSettings(r=4), training=SETTINGS
    )


def test_parameters_are_counted_as_peft_makes_them(small):
    size = plan.sizes_of(small)["new"]
    model = task_adapter_model(small.new, small.lora, {}, seed=0)
    assert size.lora == sum(p.numel() for p in adapter_parameters(model, "default").values())
    assert size.parameters == sum(p.numel() for p in model.get_base_model().parameters()) - size.lora
    few = LoraSettings(r=4, target_modules=["q_proj"])
    model = task_adapter_model(small.new, few, {}, seed=0)
    size = plan.sizes_of(dataclasses.replace(small, lora=few))["new"]
    assert size.lora == sum(p.numel() for p in adapter_parameters(model, "default").values())


def test_steps_and_tokens_are_those_of_the_run(small):
    run = Run.of(small)
    sizes = plan.sizes_of(small)
    planned = {step.name: step.steps for step in plan.plan_of(run, Spread(), sizes)}
    assert list(planned) == ["old", "new", "control", "muscle"]
    run.adapter("new")
    states = [json.loads(line) for line in [(run.folder / "new" / "muscle_step.json").read_text()]]
    assert states[0]["done"]
    from transformers import Trainer

    from muscle_hf.pipeline.steps import training_arguments

    arguments = training_arguments(small.plain_class, run.training, run.folder / "x")
    trainer = Trainer(task_adapter_model(small.new, small.lora, {}, 0), arguments, **run.data.for_trainer(arguments))
    trainer.train()
    assert planned["new"] == trainer.state.global_step
    assert sum(token_lengths(run.data)) == sum(len(row["input_ids"]) for row in trainer.train_dataset)


@pytest.mark.slow
def test_disk_is_what_a_run_leaves(small, tmp_path):
    training = {**SETTINGS, "save_strategy": "epoch", "save_total_limit": 1, "teacher_cache": str(tmp_path / "cache")}
    # Adapters large enough that configurations and tokenizers beside them do not count.
    lora = LoraSettings(r=64)
    settings = dataclasses.replace(small, training={**training, "num_train_epochs": 3}, lora=lora, control=False)
    run = Run.of(settings, lambda line: None)
    sizes = plan.sizes_of(settings)
    plans = plan.plan_of(run, Spread(), sizes)
    for name in run.models:
        run.adapter(name)

    def weigh(folder, *endings):
        return sum(file.stat().st_size for file in folder.rglob("*") if file.name.endswith(endings))

    # One checkpoint less is left at the end than lies there while the next one is written.
    final = weigh(run.folder, ".safetensors", "optimizer.pt")
    last = sum(12 * size.lora for size in (sizes["old"], sizes["new"], sizes["new"]))
    assert final + last == pytest.approx(plan.disk_of(run, sizes, plans), rel=0.15)
    assert weigh(tmp_path / "cache", ".safetensors") == pytest.approx(cache_bytes(run), rel=0.15)
    assert f"Teachers: cached in {tmp_path / 'cache'}" in plan.describe(run, Spread())


@pytest.mark.parametrize(
    ("training", "steps", "kept"),
    [
        ({"save_strategy": "no"}, 900, 0),
        ({"save_strategy": "epoch", "num_train_epochs": 4}, 900, 4),
        ({"save_strategy": "epoch", "num_train_epochs": 4, "save_total_limit": 1}, 900, 2),
        ({"save_strategy": "steps", "save_steps": 300}, 900, 3),
        ({"save_strategy": "steps", "save_steps": 0.25}, 900, 4),
        ({"save_strategy": "steps"}, None, 3),
    ],
)
def test_checkpoints_that_lie_there_at_a_time(training, steps, kept):
    assert plan.checkpoints_of(training, steps) == kept


def memory(settings, name="muscle", spread=None, old=None, **options):
    config = AutoConfig.from_pretrained(demo.base("v2"))
    size = plan.size_of_config(config, settings.lora)
    return plan.memory_of(name, size, size, settings, spread or Spread(), 512, **{"same_base": False, **options})


def test_memory_follows_what_costs_memory(small):
    whole = memory(small)
    assert memory(small, same_base=True) < whole, "one base for both versions"
    assert memory(small, "new") < whole, "no teacher"
    assert memory(dataclasses.replace(small, quantization="nf4")) < whole
    assert memory(small, spread=Spread(8, True, True), name="new") < memory(small, name="new")
    assert memory(small, spread=Spread(8, False, True)) < whole, "the optimizer is sharded"
    larger = dataclasses.replace(small, training={**SETTINGS, "per_device_train_batch_size": 8})
    assert memory(larger) > whole
    recomputed = dataclasses.replace(small, training={**SETTINGS, "activation_checkpointing": True})
    assert memory(recomputed) < whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name", "how"),
    [("Llama", "muscle", {"recomputes": True}), ("GPT-NeoX", "new", {}), ("Llama", "muscle", {"dtype": "bfloat16"})],
)
def test_memory_is_what_a_step_holds(family, name, how, monkeypatch):
    """By the benchmark's measure, on models of another shape than its own."""
    folder = paths.ROOT / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    import memory_estimate

    monkeypatch.setattr(memory_estimate, "VOCABULARY", 2048)
    config = memory_estimate.FAMILIES[family]
    for key, value in {
        "vocab_size": 2048,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
    }.items():
        monkeypatch.setattr(config, key, value)
    case = memory_estimate.Case(family, name, **how)
    assert memory_estimate.estimated(case) == pytest.approx(memory_estimate.measured(case), rel=0.15)


@pytest.mark.parametrize(
    ("name", "spread"),
    [("ddp", Spread(8)), ("fsdp2", Spread(8, True, True)), ("zero2", Spread(8, False, True)),
     ("zero3", Spread(8, True, True)), ("one_gpu", Spread())],
)  # fmt: skip
def test_spread_of_the_configurations(name, spread):
    from muscle_hf.pipeline.reading import read_yaml
    from muscle_hf.pipeline.recipes import accelerate_config

    assert Spread.of(read_yaml(accelerate_config(name))) == spread


def test_dry_run_prints_and_writes_nothing(small, tmp_path, capsys):
    import yaml

    content = {key: value for key, value in small.to_dict().items() if value is not None}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--dry-run", "--accelerate-config", "fsdp2"]) == 0
    printed = capsys.readouterr().out
    assert "12 to train on" in printed
    assert "compatibility adapter  2 steps" in printed
    assert "8 processes, weights sharded over them:" in printed
    assert " M parameters; LoRA of " in printed
    assert not (tmp_path / "out").exists()


def test_transfer_rows_count_for_the_compatibility_adapter_and_the_control(small):
    small.data.transfer = TransferSettings("a", 0, 11, answers="old")
    small.data.train = SplitSettings("a", 11, 4)
    sizes = plan.sizes_of(small)
    for ratio, rows in ((None, 11), (0.5, 2)):
        small.training["transfer_ratio"] = ratio
        run = Run.of(small)
        labelled = len(run.splits.train)
        assert transfer_rows(run) == rows
        steps = {step.name: step.steps for step in plan.plan_of(run, Spread(), sizes)}
        assert steps["old"] == 2 * math.ceil(labelled / 4)
        assert steps["muscle"] == steps["control"] == 2 * math.ceil((labelled + rows) / 4)
        assert f"{rows} without labels" in plan.describe(run, Spread())
