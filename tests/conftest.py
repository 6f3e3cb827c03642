"""Fixtures that every test module may use."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from hub_server import HubServer, point_client_here

# Two cores run the whole suite; oversubscribed OpenMP threads make it crawl. Set before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# The Hub's client reads its address and its cache when it is imported: no test reaches the real Hub or a user's cache.
_HUB = HubServer()
point_client_here(_HUB)
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

# The same examples in every run: what a new one shows is for the one who looks for it, not for who lands next.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile("same")

_frozen = 0


def pytest_runtest_setup() -> None:
    """Trainer collects garbage before each run, which takes longer than the run where all imports are looked at."""
    global _frozen
    if len(sys.modules) > _frozen + 20:
        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real data sets and small real models: ``MUSCLE_HF_SHARED``, or ``shared`` beside the checkout."""
    root = Path(os.environ.get("MUSCLE_HF_SHARED", Path(__file__).parents[2] / "shared"))
    if not (root / "models").is_dir():
        pytest.skip(f"real data and models are not at {root}; set MUSCLE_HF_SHARED to their folder")
    return root


@pytest.fixture(scope="session")
def _running_hub() -> Iterator[HubServer]:
    _HUB.start()
    yield _HUB
    _HUB.stop()


@pytest.fixture
def hub(_running_hub: HubServer) -> HubServer:
    """An empty Hub on loopback, which the real client talks to."""
    _running_hub.reset()
    return _running_hub


@pytest.fixture(scope="session")
def base_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The files of two tiny bases, by repository id."""
    from hub_world import NEW, OLD, files_in, save_base

    root = tmp_path_factory.mktemp("bases")
    return {name: files_in(save_base(root / name, seed)) for seed, name in enumerate((OLD, NEW))}


@pytest.fixture(scope="session")
def trained_folder(
    _running_hub: HubServer, base_files: dict[str, dict[str, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The output folder of a short training run on bases from the Hub; copy it before changing it."""
    from hub_world import add_bases, make_trainer

    _running_hub.reset()
    add_bases(_running_hub, base_files)
    folder = tmp_path_factory.mktemp("trained") / "run"
    trainer = make_trainer(folder)
    trainer.train()
    trainer.save_model()
    return folder


@pytest.fixture
def adapter(trained_folder: Path, tmp_path: Path) -> Path:
    """A copy of the trained folder, to be changed at will."""
    return shutil.copytree(trained_folder, tmp_path / "adapter")


@pytest.fixture
def bases(hub: HubServer, base_files: dict[str, dict[str, bytes]]) -> HubServer:
    """The Hub with the two bases on it."""
    from hub_world import add_bases

    add_bases(hub, base_files)
    return hub
