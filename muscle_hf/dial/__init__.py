"""The dial: every point between v2's task adapter and the compatibility adapter, exact, as an ordinary LoRA.

    from muscle_hf.dial import Dial, choose, walk

    dial = Dial.load("adapters/task-v2", "runs/out/muscle", task)   # one base in memory
    path = walk(dial, task, validation_items, old_predictions)      # accuracy and flips at t = 0, 0.25, ..., 1
    choice = choose(path, "least_nfr_at_no_loss")
    dial.save("adapters/chosen", choice.t)

At t = 0 it is v2's adapter, at t = 1 the compatibility adapter; between them every layer's delta is
``(1 - t) * delta_v2 + t * delta_compat``. :func:`interpolate` makes one point from two adapters.
"""

from __future__ import annotations

from muscle_hf.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "RULES": "path",
        "Dial": "dial",
        "DialPath": "path",
        "DialPoint": "path",
        "LoraAdapter": "lora",
        "check_points": "path",
        "choose": "path",
        "interpolate": "lora",
        "walk": "walk",
    },
)
