"""However rows become batches (padded, packed without padding, grouped by length), run and cache are the same."""

from __future__ import annotations

import builders
import pytest
import torch
from transformers import DataCollatorWithFlattening

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


@pytest.mark.parametrize("filled_by", list(WAYS))
@pytest.mark.parametrize("read_by", list(WAYS))
def test_one_cache_serves_every_kind_of_batch(filled_by, read_by, rows, tmp_path):
    cache = {"teacher_cache": str(tmp_path / "cache"), "skip_unneeded_teachers": False}
    first = trainer(tmp_path / "1", filled_by, rows, **cache)
    first.train()
    for store in first._passes.chunked.caches.values():
        assert len(store) == len(rows)
    second = trainer(tmp_path / "2", read_by, rows, per_device_train_batch_size=3, max_steps=3, **cache)
    for teacher in second.teachers.values():
        teacher.logits = lambda inputs: pytest.fail("a teacher ran")
    second.train()
    assert figures(second)["eval_kl_old"] > 0
