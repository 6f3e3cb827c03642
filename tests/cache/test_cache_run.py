"""``muscle-hf cache``: the teachers of a run, computed ahead of it."""

from __future__ import annotations

import json
from pathlib import Path

import builders
import pytest
import torch
import yaml
from torch.utils.data import IterableDataset

from muscle_hf import MuscleError
from muscle_hf.cache import HiddenStore, KeyRules, row_keys, teacher_fingerprint
from muscle_hf.cli.main import main
from muscle_hf.pipeline.caching import cache_teachers
from muscle_hf.pipeline.config import load_settings
from muscle_hf.pipeline.run import Run
from muscle_hf.teachers import AdapterTeacher, ModelTeacher
from muscle_hf.teachers.batch import Batch
from muscle_hf.teachers.kinds import CAUSAL_LM
from muscle_hf.training import caches


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """Settings of a run whose task adapters exist."""
    tokenizer = builders.tokenizer()
    sides = {}
    for seed, side in ((1, "old"), (2, "new")):
        base = builders.llama(seed)
        base.save_pretrained(tmp_path / f"base-{side}")
        tokenizer.save_pretrained(tmp_path / f"base-{side}")
        model = builders.with_lora(base, 10 * seed)
        model.peft_config["default"].base_model_name_or_path = str(tmp_path / f"base-{side}")
        model.save_pretrained(tmp_path / side)
        sides[side] = {"base": str(tmp_path / f"base-{side}"), "adapter": str(tmp_path / side)}
    builders.choice_files(tmp_path, train=14, test=3)
    settings = {
        "task": str(tmp_path / "task.yaml"),
        **sides,
        "output_dir": str(tmp_path / "out"),
        "data": {"source": str(tmp_path), "validation_share": 0.5},
        "training": {"max_steps": 2, "use_cpu": True, "disable_tqdm": True},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "run.yaml"


def test_the_command_fills_the_cache_once(run_file, tmp_path, capsys):
    command = ["cache", "--config", str(run_file), "--cache", str(tmp_path / "cache"), "--batch-size", "3"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "Cache of old: about" in said
    assert said.count("14 rows in") == said.count(", 14 of them computed now") == 2
    manifests = [json.loads(file.read_text()) for file in sorted((tmp_path / "cache").glob("*/manifest.json"))]
    assert {manifest["teacher"]["role"] for manifest in manifests} == {"old", "new"}
    assert {manifest["teacher"]["base_name"] for manifest in manifests} == {"base-old", "base-new"}
    before = sorted((tmp_path / "cache").rglob("rows-*"))
    assert main(command) == 0
    assert "14 rows in" in (said := capsys.readouterr().out) and ", 0 of them computed now" in said
    assert sorted((tmp_path / "cache").rglob("rows-*")) == before


def test_without_a_folder_it_fills_the_one_that_the_run_would_take(run_file, tmp_path, capsys):
    assert main(["cache", "--config", str(run_file)]) == 0
    run = Run.of(load_settings(run_file))
    assert run.teaching().training == {"teacher_cache": str(tmp_path / "out" / "teacher_cache")}
    assert len(list(Path(run.teaching().training["teacher_cache"]).glob("*/manifest.json"))) == 2
    assert main(["cache", "--config", str(run_file), "--cache", "c", "--batch-size", "0"]) == 2
    assert "--batch-size" in capsys.readouterr().err
    assert main(["cache", "--config", "stories260k/sst2", "--batch-size", "0"]) == 2  # a recipe by its name
    assert "--batch-size" in capsys.readouterr().err


def test_the_run_then_finds_its_cache(run_file, tmp_path):
    folder = str(tmp_path / "cache")
    assert main(["cache", "--config", str(run_file), "--teacher_cache", folder]) == 0
    before = sorted((tmp_path / "cache").rglob("rows-*"))
    settings = load_settings(run_file, ["--teacher_cache", folder, "--eval_strategy", "epoch"])
    trainer = Run.of(settings, lambda text: None).compatibility_trainer(tmp_path / "out")
    trainer.train()
    assert sorted((tmp_path / "cache").rglob("rows-*")) == before


def test_a_stream_is_not_cached_ahead(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(builders.rows(4))

    trainer = builders.trainer(tmp_path / "out", train_dataset=Stream())
    with pytest.raises(MuscleError, match="are a stream"):
        cache_teachers(trainer, tmp_path / "cache")


@pytest.mark.parametrize("apart", [True, False])
def test_a_trainers_teachers_are_cached_as_the_trainer_sees_them(tmp_path, apart):
    model = builders.with_lora(builders.llama(2), 20)
    old = builders.with_lora(builders.llama(1 if apart else 2), 10)
    rows = {
        "train_dataset": builders.rows(7),
        "eval_dataset": {"one": builders.rows(3, 1), "two": builders.rows(2, 2)},
    }
    trainer = builders.trainer(tmp_path / "out", model, old, trained_tokens="completion", **rows)
    found = cache_teachers(trainer, tmp_path / "cache", batch_size=2)
    batch = builders.collate(rows["train_dataset"])
    labels = trainer.trained_labels(batch)
    for role, teacher in trainer.teachers.items():
        assert (found[role].rows, found[role].computed) == (12, 12)
        store = HiddenStore(tmp_path / "cache", teacher_fingerprint(teacher, None))
        parts = row_keys(batch, labels, KeyRules.of(teacher.model, CAUSAL_LM))
        assert len(parts) == 7
        kept = torch.cat(store.get([part.key for part in parts]))
        head = teacher.model.get_output_embeddings()
        logits = Batch({}, labels, CAUSAL_LM).of_trained(teacher.logits(batch))
        torch.testing.assert_close(head(kept), logits)


def test_evaluations_that_get_logits_read_the_cache_too(tmp_path, monkeypatch):
    base = builders.llama(1)
    base.save_pretrained(tmp_path / "base")
    adapter = builders.with_lora(base, 10)
    adapter.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapter.save_pretrained(tmp_path / "old")
    asked = []

    def trained(name, **settings):
        asked.clear()
        trainer = builders.trainer(
            tmp_path / name, old_model=str(tmp_path / "old"), train_dataset=builders.rows(),
            eval_dataset=builders.rows(4, 5), eval_strategy="steps", eval_steps=1, **settings,
        )  # fmt: skip
        trainer.train()
        return [entry for entry in trainer.state.log_history if "eval_loss" in entry]

    for kind in (AdapterTeacher, ModelTeacher):
        own = kind.logits
        monkeypatch.setattr(kind, "logits", lambda self, x, own=own: asked.append(self.role) or own(self, x))
    cache = {"teacher_cache": str(tmp_path / "cache"), "skip_unneeded_teachers": False}
    trained("filling", **cache)
    assert asked
    seen = []
    found = trained("cached", **cache, compute_metrics=lambda given: seen.append(given.predictions.shape) or {})
    assert seen == [(4, 10, builders.VOCABULARY)] * 2 and not asked, "a teacher's body has run"
    for entry, expected in zip(found, trained("plain", compute_metrics=lambda given: {}), strict=True):
        for name in ("eval_loss", "eval_kl_old", "eval_kl_new", "eval_share_old"):
            assert entry[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_steps": -1, "num_train_epochs": 3}, "67%"),
        ({"max_steps": 8}, "75%"),
        ({"max_steps": 2}, None),
        ({"max_steps": -1, "num_train_epochs": 1}, None),
        ({"max_steps": 8, "teacher_cache": "cache"}, None),
        ({"max_steps": 8, "loss_chunk_size": 0}, None),
    ],
)
def test_a_training_without_a_cache_is_told_what_one_would_save(settings, told, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(caches.logger, "warning_once", said.append)
    if "teacher_cache" in settings:
        settings = {**settings, "teacher_cache": str(tmp_path / "cache")}
    # Eight rows in batches of four.
    builders.trainer(tmp_path, **settings).train()
    assert [told in text and "teacher_cache" in text for text in said] == ([] if told is None else [True])
