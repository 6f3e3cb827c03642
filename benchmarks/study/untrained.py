"""Adapters that cost no training: v1's on v2's base as it is, and a mixture of v1's and v2's."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from muscle_hf.dial import LoraAdapter, interpolate
from muscle_hf.dial.dial import _write_adapter
from muscle_hf.metrics import flip_metrics

if TYPE_CHECKING:
    from study import Cell

    from muscle_hf.pipeline.config import ModelSettings

SHARES = (0.25, 0.5, 0.75, 1.0)


def port(cell: Cell, folder: Path) -> None:
    """v1's adapter on v2's base (PortLLM, 2410.10870)."""
    shutil.copytree(cell.version("old").adapter, folder)


def mixture(cell: Cell, folder: Path) -> None:
    """Of v1's adapter and v2's on v2's base, with the share of v1 that validation rows choose by the rule of the
    study's tuning, 0 among them (backward compatible weight interpolation, 2301.10546)."""
    new = cell.version("new")
    ends = [LoraAdapter.read(cell.version(side).adapter) for side in ("new", "old")]
    found = {0.0: (_figures(cell, new), Path(new.adapter))}
    for share in SHARES:
        place = folder.parent / f"share={share:g}" / folder.name
        if not place.is_dir():
            place.mkdir(parents=True)
            _write_adapter(place, interpolate(*ends, share))
        found[share] = (_figures(cell, dataclasses.replace(new, adapter=str(place))), place)
    least = found[0.0][0]["acc_new"]
    allowed = {share: figures for share, (figures, _) in found.items() if figures["acc_new"] >= least}
    chosen = min(allowed, key=lambda share: (allowed[share]["nfr"], -allowed[share]["acc_new"]))
    shutil.copytree(found[chosen][1], folder)
    (folder / "share.txt").write_text(f"{chosen:g}\n", encoding="utf-8")


def _figures(cell: Cell, model: ModelSettings) -> dict[str, float]:
    old, new = (cell.answers(side, "validation") for side in (cell.version("old"), model))
    return flip_metrics(*([row.prediction for row in rows] for rows in (old, new)), [row.target for row in old])


UNTRAINED = {"port": port, "mixture": mixture}
