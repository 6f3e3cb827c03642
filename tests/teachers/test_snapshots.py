"""What is known of weights in the Hub's cache without reading them, and when it is not believed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import builders
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from muscle_hf.teachers import weights
from muscle_hf.teachers.origin import origin_of
from muscle_hf.teachers.snapshots import blobs_of, written_to
from muscle_hf.teachers.weights import folder_hash


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A model as the Hub's client keeps it: files under their hashes, and links to them in the commit's folder."""
    builders.llama(1).save_pretrained(tmp_path / "made")
    repository = tmp_path / "hub" / "models--tester--base"
    folder = repository / "snapshots" / ("c" * 40)
    (repository / "blobs").mkdir(parents=True)
    folder.mkdir(parents=True)
    for file in (tmp_path / "made").iterdir():
        name = hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(repository / "blobs" / name)
        (folder / file.name).symlink_to(Path("../../blobs", name))
    return folder


@pytest.fixture
def taken(monkeypatch) -> list[int]:
    """One entry for each hash of weights that is taken."""
    found, taking = [], weights._hash
    monkeypatch.setattr(weights, "_hash", lambda tensors: (found.append(1), taking(tensors))[1])
    return found


def alter(folder: Path, *, hide: bool = False) -> None:
    """Write other weights into the kept file, which keeps its name and size, and with ``hide`` its time of writing."""
    (blob,) = blobs_of(folder).values()
    before, tensors = blob.stat(), load_file(blob)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, blob, {"format": "pt"})
    assert blob.stat().st_size == before.st_size
    written = before.st_mtime_ns if hide else before.st_mtime_ns + 3600 * 10**9
    os.utime(blob, ns=(before.st_atime_ns, written))


def test_a_snapshot_is_hashed_once(snapshot, taken):
    for _ in range(2):
        hashes = [folder_hash(snapshot) for _ in range(2)]
        assert len(set(hashes)) == 1
    assert len(taken) == 1
    assert folder_hash(snapshot, torch.bfloat16) not in hashes


@pytest.mark.parametrize("hide", [False, True])
def test_weights_that_were_altered_here_are_others(snapshot, hide):
    known = folder_hash(snapshot)
    assert not written_to(snapshot)
    alter(snapshot, hide=hide)
    assert folder_hash(snapshot) != known
    assert written_to(snapshot) is not hide


def test_a_base_that_was_altered_here_is_of_no_commit(snapshot):
    assert origin_of(AutoModelForCausalLM.from_pretrained(snapshot)).revision == snapshot.name
    alter(snapshot)
    found = origin_of(AutoModelForCausalLM.from_pretrained(snapshot))
    assert (found.name, found.revision, found.on_hub) == ("tester/base", None, True)


def test_of_another_folder_nothing_is_remembered(snapshot, taken):
    builders.llama(1).save_pretrained(snapshot.parent / "plain")
    assert blobs_of(snapshot.parent / "plain") is None and not written_to(snapshot.parent / "plain")
    assert folder_hash(snapshot.parent / "plain") == folder_hash(snapshot.parent / "plain")
    assert len(taken) == 2
