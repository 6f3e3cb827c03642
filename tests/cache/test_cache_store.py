"""The store below the teacher cache: what is put in comes out, whatever happens in between, or is missing."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muscle_hf import MuscleError
from muscle_hf.cache import Column, Fingerprint, HiddenStore, predicted_bytes, require_space

TEACHER, OTHER = Fingerprint({"teacher": "a"}, {}), Fingerprint({"teacher": "b"}, {})
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def row(number: int) -> torch.Tensor:
    """Holds its number in every element, so that any reader can tell whether it is right."""
    return torch.full((1 + number % 7, 16), float(number))


def filled(folder: Path, numbers: range, **settings) -> Path:
    """A store's folder with rows in it."""
    with HiddenStore(folder, TEACHER, **settings) as store:
        store.put([key(number) for number in numbers], [row(number) for number in numbers])
    return store.folder


def held(store: HiddenStore, numbers: range) -> set[int]:
    """Which rows the store has; every one that it has must be right."""
    found = store.get([key(number) for number in numbers])
    for number, tensor in zip(numbers, found, strict=True):
        assert tensor is None or torch.equal(tensor, row(number))
    return {number for number, tensor in zip(numbers, found, strict=True) if tensor is not None}


def fork(work: Callable, *arguments) -> multiprocessing.Process:
    """A process of its own, which need not import everything again."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def write_one_by_one(folder: Path, numbers: range, written=None, then: Callable = lambda: None) -> None:
    """In small shards; says in ``written`` how far it is."""
    store = HiddenStore(folder, TEACHER, shard_bytes=4000)
    for count, number in enumerate(numbers, 1):
        store.put([key(number)], [row(number)])
        if written is not None:
            written.value = count
    then()
    store.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_rows_come_back_after_reopening_and_before(tmp_path):
    store = HiddenStore(tmp_path, TEACHER)
    store.put([key(1), None, key(2)], [row(1), row(9), row(2)])
    assert held(store, range(4)) == {1, 2} and len(store) == 2 and key(1) in store
    store.close()
    with HiddenStore(tmp_path, TEACHER) as again:
        assert held(again, range(4)) == {1, 2}
        assert again.get([None, key(9)]) == [None, None]
        assert again.columns == {"hidden": Column(torch.float32, (16,))}


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    width=st.integers(1, 5),
    dtype=st.sampled_from(DTYPES),
    shard_bytes=st.sampled_from([1, 300, 10**6]),
    seed=st.integers(0, 99),
)
def test_any_rows_come_back_bit_for_bit(tmp_path_factory, lengths, width, dtype, shard_bytes, seed):
    folder = tmp_path_factory.mktemp("store")
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(length, width, generator=generator).to(dtype) for length in lengths]
    keys = [key(number) for number in range(len(rows))]
    with HiddenStore(folder, TEACHER, shard_bytes=shard_bytes) as store:
        store.put(keys, rows)
        before = store.get(keys)
    with HiddenStore(folder, TEACHER) as store:
        after = store.get(keys)
        assert all(tensor.dtype is dtype for tensor in after)
    for original, one, two in zip(rows, before, after, strict=True):
        assert torch.equal(original, one) and torch.equal(original, two)


def test_a_row_is_copied_when_it_is_put_and_mapped_when_it_is_got(tmp_path):
    batch = torch.ones(4, 8, 16)
    store = HiddenStore(tmp_path, TEACHER)
    store.put([key(1)], [batch[0]])
    batch.zero_()
    store.flush()
    one, other = store.get([key(1)])[0], store.get([key(1)])[0]
    assert torch.equal(one, torch.ones(8, 16))
    assert one.data_ptr() == other.data_ptr()


def test_a_known_row_is_not_written_again(tmp_path):
    folder = filled(tmp_path, range(5))
    before = sorted(folder.iterdir())
    filled(tmp_path, range(5))
    assert sorted(folder.iterdir()) == before


def test_refresh_sees_what_others_wrote(tmp_path):
    reader = HiddenStore(tmp_path, TEACHER)
    filled(tmp_path, range(3))
    assert held(reader, range(3)) == set()
    assert reader.refresh() == 3 and reader.refresh() == 0
    assert held(reader, range(3)) == {0, 1, 2}


def test_the_manifest_says_what_the_folder_is(tmp_path):
    folder = filled(tmp_path, range(2))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["identity"] == TEACHER.digest
    assert manifest["columns"] == {"hidden": {"dtype": "float32", "shape": [16]}}
    assert {"torch", "transformers", "peft"} <= manifest["packages"].keys()
    (folder / "manifest.json").write_text("{")
    with HiddenStore(tmp_path, TEACHER) as store:
        assert held(store, range(2)) == {0, 1}
        store.put([key(2)], [row(2)])
    assert json.loads((folder / "manifest.json").read_text())["identity"] == TEACHER.digest


@pytest.mark.parametrize("place", ["header", "index", "content", "cut", "empty", "longer"])
def test_a_damaged_file_is_set_aside_and_its_rows_are_written_anew(tmp_path, caplog, place):
    folder = filled(tmp_path, range(10), shard_bytes=1)
    whole = sorted(folder.glob("rows-*"))
    victim, content = whole[0], whole[0].read_bytes()
    header = int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8 : 8 + header])

    def flipped(name: str) -> bytes:
        at = 8 + header + tensors[name]["data_offsets"][0]
        return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]

    damaged = {
        "header": content[:20] + b"?" + content[21:],
        "index": flipped("keys"),
        "content": flipped("hidden"),
        "cut": content[:-10],
        "empty": b"",
        "longer": content + b"more",
    }
    victim.write_bytes(damaged[place])
    with HiddenStore(tmp_path, TEACHER, shard_bytes=1) as store:
        kept = held(store, range(10))
        assert len(kept) == 9
        assert held(store, range(10)) == kept
        assert caplog.text.count("damaged file") == 1 and victim.name in caplog.text
        assert not victim.exists() and victim.with_name(victim.name + ".damaged").exists()
        (lost,) = set(range(10)) - kept
        store.put([key(lost)], [row(lost)])
        assert held(store, range(10)) == set(range(10))
    assert held(HiddenStore(tmp_path, TEACHER), range(10)) == set(range(10))
    assert caplog.text.count("damaged file") == 1


def test_a_row_that_two_files_hold_survives_the_loss_of_one(tmp_path):
    one, two = HiddenStore(tmp_path, TEACHER), HiddenStore(tmp_path, TEACHER)
    for store in (one, two):
        store.put([key(1)], [row(1)])
        store.close()
    for file in sorted(one.folder.glob("rows-*"))[1:]:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    assert held(HiddenStore(tmp_path, TEACHER), range(3)) == {1}


def test_another_teacher_has_another_folder_and_its_files_are_not_read(tmp_path, caplog):
    folder = filled(tmp_path, range(3))
    other = HiddenStore(tmp_path, OTHER)
    assert other.folder != folder and held(other, range(3)) == set()
    other.folder.mkdir()
    for file in folder.glob("rows-*"):
        shutil.copy(file, other.folder)
    assert other.refresh() == 0 and held(other, range(3)) == set()
    assert "another teacher" in caplog.text
    shutil.copy(folder / "manifest.json", other.folder)
    with pytest.raises(MuscleError, match="another teacher"):
        HiddenStore(tmp_path, OTHER)


@pytest.mark.parametrize("wrong", [row(1).double(), row(1)[:, :3], row(1).bfloat16()])
def test_another_dtype_or_width_is_refused(tmp_path, wrong):
    filled(tmp_path, range(3))
    with HiddenStore(tmp_path, TEACHER) as store, pytest.raises(MuscleError, match="per token"):
        store.put([key(7)], [wrong])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_kept(tmp_path, bad):
    with HiddenStore(tmp_path, TEACHER) as store, pytest.raises(MuscleError, match="nan or infinite"):
        store.put([key(1)], [torch.tensor([[1.0, bad]])])
    assert len(HiddenStore(tmp_path, TEACHER)) == 0


def test_two_processes_build_one_cache_together(tmp_path):
    processes = [fork(write_one_by_one, tmp_path, range(300)), fork(write_one_by_one, tmp_path, range(200, 500))]
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    with HiddenStore(tmp_path, TEACHER) as store:
        assert held(store, range(500)) == set(range(500))
    names = {path.name for path in store.folder.iterdir()}
    assert "manifest.json" in names and not [name for name in names if name.startswith(".")]


def test_sigkill_loses_the_buffer_and_nothing_else(tmp_path):
    written = multiprocessing.Value("i", 0)
    process = fork(write_one_by_one, tmp_path, range(200), written, lambda: time.sleep(600))
    wait_until(lambda: written.value == 200)
    process.kill()
    process.join(timeout=60)
    assert process.exitcode == -9
    with HiddenStore(tmp_path, TEACHER) as store:
        kept = held(store, range(200))
        # In order, and at most one shard's rows (4000 bytes of 16 floats a token) are gone.
        assert kept == set(range(len(kept))) and 200 - len(kept) < 4000 / 64
        store.put([key(number) for number in range(200)], [row(number) for number in range(200)])
        assert held(store, range(200)) == set(range(200))


@pytest.mark.parametrize("moment", range(3))
def test_sigkill_at_any_moment_leaves_a_cache_that_can_be_used(tmp_path, moment):
    written = multiprocessing.Value("i", 0)
    process = fork(write_one_by_one, tmp_path, range(100_000), written)
    wait_until(lambda: written.value >= 50 + 311 * moment)
    process.kill()
    process.join(timeout=60)
    (folder,) = tmp_path.iterdir()
    # What a kill leaves half-written is no shard to any reader, and is cleared away once it is surely abandoned.
    half = folder / ".rows-killed.unfinished"
    half.write_bytes(b"\x10\x00\x00")
    with HiddenStore(tmp_path, TEACHER) as store:
        kept = held(store, range(2000))
        assert kept == set(range(len(kept))) and kept
    assert half.exists()
    os.utime(half, (time.time() - 7200,) * 2)
    HiddenStore(tmp_path, TEACHER)
    assert not half.exists()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path):
    place = tmp_path / "not" / "there"
    with pytest.raises(MuscleError, match="room for"):
        require_space(place, 10**18)
    assert not place.exists() and not place.parent.exists()
    require_space(place, 1000)


def test_the_predicted_size_is_what_is_written(tmp_path):
    folder = filled(tmp_path, range(300))
    tokens = sum(len(row(number)) for number in range(300))
    predicted = predicted_bytes(300, tokens, {"hidden": Column(torch.float32, (16,))})
    written = sum(file.stat().st_size for file in folder.glob("rows-*"))
    assert 0 <= written - predicted < 1000


def test_a_disk_that_syncs_no_folders_keeps_what_is_written(tmp_path, monkeypatch):
    """Windows opens none."""
    opened, synced = os.open, []

    def files_alone(path, *how, **more):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *how, **more)

    monkeypatch.setattr(os, "open", files_alone)
    monkeypatch.setattr(os, "fsync", synced.append)
    store = HiddenStore(tmp_path, TEACHER)
    store.put([key(1)], [row(1)])
    store.flush()
    assert not store._buffer and held(store, range(2)) == {1} and len(synced) == 1
    assert len(list(store.folder.glob("*.safetensors"))) == 1


def test_a_folder_that_cannot_be_written_says_so_and_keeps_the_rows(tmp_path):
    (tmp_path / "file").write_text("in the way")
    store = HiddenStore(tmp_path / "file", TEACHER)
    store.put([key(1)], [row(1)])
    with pytest.raises(MuscleError, match="cannot be made"):
        store.flush()
    assert held(store, range(3)) == {1}
