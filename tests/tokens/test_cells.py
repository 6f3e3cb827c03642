"""Tables of cells, and the sum over them: equation (X1)."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from tokenizer_builders import byte_level, renumbered
from transformers import AutoTokenizer

from muscle_hf.tokens import ByteVocabulary, CellTable
from muscle_hf.tokens import spread as spread_masses
from muscle_hf.tokens.cells import load_table

NAMES = ("stories260k", "aidreams260k", "stories290k_bpe")
PAIRS = [("stories260k", "stories290k_bpe"), ("stories290k_bpe", "stories260k"), ("aidreams260k", "stories260k")]


def vocabulary(shared_dir: Path, name: str) -> ByteVocabulary:
    return ByteVocabulary.of(AutoTokenizer.from_pretrained(shared_dir / "models" / name))


def spread(p: torch.Tensor, table: CellTable, s: torch.Tensor) -> torch.Tensor:
    return spread_masses(p.log(), table, s.log())[0].exp()


def plain(p: torch.Tensor, table: CellTable, s: torch.Tensor) -> torch.Tensor:
    """Equation (X1), one pair after the other."""
    q = torch.zeros(len(p), s.size(1), dtype=torch.float64)
    cells: dict[int, list[int]] = {}
    for w, u in zip(table.old.tolist(), table.new.tolist(), strict=True):
        cells.setdefault(w, []).append(u)
    for w, cell in cells.items():
        for u in cell:
            q[:, u] += p[:, w].double() * s[:, u].double() / s[:, cell].double().sum(-1)
    return q


@pytest.mark.parametrize("name", NAMES)
def test_one_tokenizer_is_the_identity(shared_dir: Path, name: str):
    one = vocabulary(shared_dir, name)
    table = CellTable.build(one, one)
    p = torch.rand(3, one.size).softmax(-1)
    q = spread(p, table, torch.rand(3, one.size))
    assert not table.open.any()
    ordinary = torch.from_numpy(one.canonical)
    expected = torch.where(ordinary, p, 0.0)
    expected[:, list(one.special)] = p[:, list(one.special)]
    for twin in [id for id, string in enumerate(one.strings) if string and not ordinary[id]]:
        expected[:, one.pieces([one.strings[twin]])[0][0]] += p[:, twin]
    assert torch.allclose(q, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["stories260k", "stories290k_bpe"])
def test_another_numbering_gives_the_same_bits(shared_dir: Path, name: str):
    folder = shared_dir / "models" / name
    one = vocabulary(shared_dir, name)
    tokenizer, ids = renumbered(folder, special=["<tool>", "<think>"])
    other = ByteVocabulary.of(tokenizer)
    p = torch.rand(2, one.size).softmax(-1)
    twins = [id for id, string in enumerate(one.strings) if string and not one.canonical[id]]
    p[:, twins] = 0
    log_q, _ = spread_masses(p.log(), CellTable.build(one, other), torch.rand(2, other.size))
    known = [id for id in range(one.size) if id not in twins]
    assert torch.equal(log_q[:, [ids[id] for id in known]], p.log()[:, known])
    assert log_q[:, :2].isneginf().all()


@pytest.mark.parametrize(("old", "new"), PAIRS)
@pytest.mark.parametrize(("residue", "carry"), [(b"", b""), (b" ", b""), (b"", b" "), (b" l", b""), (b"", b" lo")])
def test_mass_is_kept_and_goes_where_the_text_may(shared_dir: Path, old: str, new: str, residue: bytes, carry: bytes):
    one, other = vocabulary(shared_dir, old), vocabulary(shared_dir, new)
    table = CellTable.build(one, other, residue, carry)
    p, s = torch.rand(2, one.size).softmax(-1), torch.rand(2, other.size)
    q = spread(p, table, s)
    undecided = spread_masses(p.log(), table, s.log())[1]
    assert torch.allclose(undecided, p[:, table.old[table.open].unique()].sum(-1), atol=1e-6)
    assert torch.allclose(q.double(), plain(p, table, s), atol=1e-7)
    assert torch.allclose(q.sum(-1), p[:, table.old.unique()].sum(-1), atol=1e-6)
    starting = {
        w for w, string in enumerate(one.strings) if string and string != residue and string.startswith(residue)
    }
    ends = set(one.special) if not residue and not carry else set()
    assert set(table.old.tolist()) - ends == starting
    for u in q[0].nonzero()[:, 0].tolist():
        string = other.string(u)
        assert u in other.special or string.startswith(carry) or carry.startswith(string)


def test_a_wider_output_gets_nothing_and_an_unsaid_cell_is_shared_equally():
    one, other = ByteVocabulary.of(byte_level([])), ByteVocabulary.of(byte_level([("a", "b")]))
    table = CellTable.build(one, other)
    p, student = torch.zeros(1, one.size), torch.zeros(1, other.size)
    p[0, 2] = 1.0  # "a", which the student writes alone or with a "b"
    student[0, [2, 5]] = torch.tensor([-1000.0, -2000.0])
    log_q, _ = spread_masses(p.log(), table, student)
    assert log_q.exp()[0].tolist() == pytest.approx([0, 0, 0.5, 0, 0, 0.5], abs=1e-5)


def test_tables_are_kept_by_what_both_tokenizers_are(tmp_path: Path):
    one, other = ByteVocabulary.of(byte_level([("a", "b")])), ByteVocabulary.of(byte_level([("b", "c")]))
    table = load_table(one, other, tmp_path)
    (file,) = tmp_path.iterdir()
    again = load_table(one, other, tmp_path)
    assert (
        torch.equal(table.old, again.old) and torch.equal(table.new, again.new) and torch.equal(table.open, again.open)
    )
    load_table(other, one, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    file.write_bytes(b"damaged")
    assert torch.equal(load_table(one, other, tmp_path).new, table.new)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, most))  # as on a full disk
    try:
        assert torch.equal(load_table(one, other, tmp_path / "full").new, table.new)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    kept = file.stat().st_mtime_ns
    load_table(one, other, tmp_path)
    assert file.stat().st_mtime_ns == kept
