"""One of two processes: trains with FlipMetricsCallback, evaluates a sharded model, and compares with one alone."""

import sys
from pathlib import Path

import torch
from evaluation_models import make_generation_task, make_model, make_tokenizer
from test_flip_callback import ITEMS, TASK, make_trainer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from muscle_hf.callbacks import FlipMetricsCallback, training_flips
from muscle_hf.evaluation import evaluate_task

torch.set_num_threads(1)
folder = Path(sys.argv[1])
trainer = make_trainer(folder, num_train_epochs=1, per_device_train_batch_size=2, ddp_backend="gloo")
old = make_model(seed=1)
callback = FlipMetricsCallback(TASK, ITEMS, old, trainer=trainer, batch_size=3)
trainer.add_callback(callback)
trainer.train()
assert trainer.args.world_size == 2
alone = [
    evaluate_task(m, make_tokenizer(), TASK, ITEMS, batch_size=3, progress=False, distributed=False)
    for m in (old, trainer.model)
]
assert callback.predictions("old") == alone[0]
expected = training_flips(*alone)
assert {name: callback.history[-1][name] for name in expected} == expected
# Weights split over the processes (FSDP2): every forward pass takes both.
sharded, whole = make_model(), make_model()
mesh = init_device_mesh("cpu", (2,))
for layer in sharded.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(sharded, mesh=mesh)
for task, items in ((TASK, ITEMS), make_generation_task(5, stop=("zz",))):
    settings = {"batch_size": 3, "progress": False}
    together = evaluate_task(sharded, make_tokenizer(), task, items, **settings)
    single = evaluate_task(whole, make_tokenizer(), task, items, distributed=False, **settings)
    assert [p.prediction for p in together] == [p.prediction for p in single]

(folder / f"{trainer.args.process_index}.txt").write_text(repr(sorted(expected.items())))
