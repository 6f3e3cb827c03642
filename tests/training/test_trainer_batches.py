"""However rows become batches (padded, packed without padding, grouped by length), run and cache are the same."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import builders
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from launching import end, launched
from torch.utils.data import DataLoader, IterableDataset
from transformers import DataCollatorWithFlattening

from muscle_hf import MuscleError
from muscle_hf.training.refusals import refuse_filler_rows

WAYS = {
    "padded": {},
    "packed": {"data_collator": DataCollatorWithFlattening()},
    "grouped": {"train_sampling_strategy": "group_by_length"},
}


def trainer(folder, way, rows, **settings):
    model, old = builders.with_lora(builders.llama(2), 20), builders.with_lora(builders.llama(1), 10)
    settings = {"max_steps": 1, "per_device_train_batch_size": len(rows), **WAYS[way], **settings}
    return builders.trainer(folder, model, old, train_dataset=rows, eval_dataset=rows, **settings)


@pytest.fixture
def rows():
    made = builders.half_right(builders.rows(8, low=6, high=20, ignore=0), builders.with_lora(builders.llama(2), 20))
    return builders.without(made, "completion_mask")


def figures(done):
    return {name: value for name, value in done.evaluate().items() if builders.is_figure(name)}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("way", ["packed", "grouped"])
def test_a_step_is_the_step_on_padded_rows(way, whole, rows, tmp_path):
    settings = {"loss_chunk_size": 0} if whole else {}
    padded, other = (trainer(tmp_path / name, name, rows, **settings) for name in ("padded", way))
    for done in (padded, other):
        done.train()
    weights = dict(padded.model.named_parameters())
    for name, weight in other.model.named_parameters():
        torch.testing.assert_close(weight, weights[name], rtol=1e-3, atol=2e-5)
    expected = figures(padded)
    for name, value in figures(other).items():
        assert value == pytest.approx(expected[name], rel=1e-4), name


def test_a_mask_for_each_kind_of_layer_is_as_long_as_its_rows(rows, tmp_path):
    """Behind the last trained token everything is cut, or nothing."""

    def padded(table):
        batch = {**builders.collate(table)}
        fill = {"labels": -100}
        return {name: torch.nn.functional.pad(v, (0, 16), value=fill.get(name, 0)) for name, v in batch.items()}

    def masked(table):
        batch = padded(table)
        seen = batch.pop("attention_mask").bool()[:, None, None] & torch.ones(36, 36, dtype=torch.bool).tril()
        mask = torch.where(seen, 0.0, -1e9)
        return {**batch, "attention_mask": {"full_attention": mask, "sliding_attention": mask}}

    rows[0] = {name: (values * 4)[:20] for name, values in rows[0].items()}  # so that each batch is of one length
    found = []
    for collate in (padded, masked):
        model, old = builders.with_lora(builders.gemma2(2), 20), builders.with_lora(builders.gemma2(1), 10)
        settings = {"per_device_eval_batch_size": 8, "data_collator": collate, "remove_unused_columns": False}
        found.append(
            figures(builders.trainer(tmp_path, model, old, train_dataset=rows, eval_dataset=rows, **settings))
        )
    assert found[1] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize("filled_by", list(WAYS))
@pytest.mark.parametrize("read_by", list(WAYS))
def test_one_cache_serves_every_kind_of_batch(filled_by, read_by, rows, tmp_path):
    cache = {"teacher_cache": str(tmp_path / "cache"), "skip_unneeded_teachers": False}
    first = trainer(tmp_path / "1", filled_by, rows, **cache)
    first.train()
    for store in [source.store for source in first._step.sources.values()]:
        assert len(store) == len(rows)
    second = trainer(tmp_path / "2", read_by, rows, per_device_train_batch_size=3, max_steps=3, **cache)
    for teacher in second.teachers.values():
        teacher.logits = lambda inputs: pytest.fail("a teacher ran")
    second.train()
    assert figures(second)["eval_kl_old"] > 0


# ---- Two processes ----


class Stream(IterableDataset):
    """Rows one after another."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


@pytest.mark.parametrize(
    ("stream", "processes", "drop_last"), [(True, 2, False), (True, 1, False), (True, 2, True), (False, 2, False)]
)
def test_an_evaluation_whose_rows_would_count_twice_is_refused(stream, processes, drop_last, rows):
    loader = prepare_data_loader(
        DataLoader(Stream(rows) if stream else rows, batch_size=3, collate_fn=builders.collate, drop_last=drop_last),
        num_processes=processes, process_index=0, dispatch_batches=False, put_on_device=False,
    )  # fmt: skip
    with pytest.raises(MuscleError) if stream and processes > 1 and not drop_last else contextlib.nullcontext():
        refuse_filler_rows(loader, processes)


def evaluated(folder, batch):
    """Figures and temperatures of five rows, of which the last batch of two processes holds some twice."""
    made = builders.rows(5, 3)
    for seed in (1, 2):  # each model right somewhere, so that a temperature fits
        made = builders.half_right(made, builders.with_lora(builders.llama(seed), 10 * seed))
    rows, found = builders.without(made, "completion_mask"), {}
    for way in ("padded", "packed"):
        done = trainer(
            folder / way, way, rows, per_device_eval_batch_size=batch, calibrate_teachers=True, learning_rate=0.0
        )
        done.train()
        found[way] = {**figures(done), **done.teacher_temperatures}
    return done, found


@pytest.mark.slow
@pytest.mark.parametrize("batch", [2, 4])
def test_figures_do_not_depend_on_the_number_of_processes(batch, tmp_path):
    _, expected = evaluated(tmp_path / "one", 8)
    launched([__file__, str(tmp_path), str(batch)], {"ACCELERATE_USE_CPU": "true"})
    for way, found in json.loads((tmp_path / "found.json").read_text()).items():
        assert found == pytest.approx(expected[way], rel=1e-5), way


if __name__ == "__main__":
    last, all_figures = evaluated(Path(sys.argv[1], "two"), int(sys.argv[2]))
    stream = Stream(builders.rows(5, 3))
    settings = {"eval_dataset": stream, "max_steps": 1, "accelerator_config": {"dispatch_batches": False}}
    with pytest.raises(MuscleError, match="dispatch_batches"):
        builders.trainer(Path(sys.argv[1], "refused"), **settings)
    if last.accelerator.is_main_process:
        Path(sys.argv[1], "found.json").write_text(json.dumps(all_figures), encoding="utf-8")
    end(last)
