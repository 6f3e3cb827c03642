"""v1's targets over the student's tokens, against brute force over texts and against v1's own likelihood."""

from __future__ import annotations

import gzip
import itertools
import math
import random
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from tokenizer_builders import byte_level, renumbered, unigram
from transformers import AutoModelForCausalLM, AutoTokenizer

from muscle_hf.tokens import Aligner, ForeignTargets
from muscle_hf.tokens.foreign import FLOOR

# Merges of v1 and of the student; whether some token of v1 leaves the student's open.
TINY = [
    ([("a", "b")], [("b", "c")], False),
    ([("a", "b"), ("ab", "c")], [("a", "b")], False),
    ([("b", "b"), ("bb", "c")], [("b", "b")], False),
    ([("b", "b"), ("a", "bb"), ("a", "b"), ("abb", "b")], [("a", "b")], False),
    ([("a", "b")], [("a", "b"), ("ab", "c")], True),
    ([("b", "b"), ("b", "a")], [("a", "c"), ("c", "ac"), ("a", "cac")], True),
    ([("c", "b"), ("c", "cb"), ("a", "ccb")], [("b", "a"), ("ba", "a"), ("b", "c")], True),
    ([("b", "c"), ("a", "bc")], [("a", "b"), ("c", "a")], True),
]


def next_tokens(
    tokenizer, texts: dict[str, float]
) -> tuple[dict[str, list[int]], dict[tuple[int, ...], torch.Tensor]]:
    """Each text's tokens with its end, and the distribution of the next token behind each beginning."""
    rows = {text: [*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts}
    mass: dict[tuple[int, ...], torch.Tensor] = defaultdict(lambda: torch.zeros(len(tokenizer), dtype=torch.float64))
    for text, row in rows.items():
        for count, token in enumerate(row):
            mass[tuple(row[:count])][token] += texts[text]
    return rows, {beginning: weights / weights.sum() for beginning, weights in mass.items()}


def letter_texts(size: int = 5) -> dict[str, float]:
    """All texts of that size, and the probabilities that a random chain of letters gives them."""
    draw = random.Random(0)
    chain = {one: {other: draw.random() ** 2 + 0.05 for other in "abc"} for one in "abc "}
    texts = {}
    for letters in itertools.product("abc", repeat=size):
        before = [" ", *letters[:-1]]
        weights = [chain[one][other] / sum(chain[one].values()) for one, other in zip(before, letters, strict=True)]
        texts["".join(letters)] = math.prod(weights)
    return texts


@pytest.mark.parametrize(("old", "new", "is_open"), TINY)
def test_brute_force_over_all_texts(tmp_path: Path, old, new, is_open: bool):
    one, other = byte_level(old), byte_level(new)
    targets = ForeignTargets(Aligner(one, other), tmp_path)
    texts = letter_texts()
    (old_rows, old_next), (new_rows, new_next) = next_tokens(one, texts), next_tokens(other, texts)
    distance, weight = 0.0, 0.0
    for text in random.Random(1).sample(sorted(texts), 40):
        row = [other.bos_token_id, *new_rows[text]]
        view = targets.aligner.view(row, range(1, len(row)), old_ids=[one.bos_token_id, *old_rows[text]])
        assert view.aligned and None not in view.places
        logits = torch.stack([old_next[tuple(old_rows[text][:count])] for count in range(len(old_rows[text]))])
        true = torch.stack([new_next[tuple(new_rows[text][:count])] for count in range(len(new_rows[text]))]).float()
        found = targets.target(logits.log().clamp_min(FLOOR), view.places, true.log().clamp_min(FLOOR))
        far = (found.log_q.exp() - true).abs().sum(-1) / 2
        if not is_open:
            spelt = found.log_q[range(len(true)), new_rows[text]].sum().item()
            assert far.max() < 1e-6
            assert spelt == pytest.approx(math.log(texts[text]), abs=1e-4)
        distance, weight = distance + texts[text] * far.mean().item(), weight + texts[text]
    assert distance / weight < 0.08


@pytest.mark.parametrize("name", ["stories260k", "stories290k_bpe"])
def test_one_tokenizer_under_other_ids_gives_v1s_own_logits(shared_dir: Path, tmp_path: Path, name: str):
    folder = shared_dir / "models" / name
    old = AutoTokenizer.from_pretrained(folder)
    new, ids = renumbered(folder, special=["<tool>"])
    targets = ForeignTargets(Aligner(old, new), tmp_path)
    row = new("Lily saw the other thing, and then they went home.")["input_ids"]
    view = targets.aligner.view(row, range(4, len(row)))
    assert [ids[id] for id in view.old_ids] == row
    logits = torch.randn(len(row), len(old))
    twins = [
        id for id, string in enumerate(targets.aligner.old.strings) if string and not targets.aligner.old.canonical[id]
    ]
    logits[:, twins] = -1e4
    places = view.places
    student = torch.randn(len(places), len(new))
    found = targets.target(logits, places, student)
    expected = logits[[place.first + sum(step.kind < 0 for step in place.steps) for place in places]].log_softmax(-1)
    known = [id for id in range(len(old)) if id not in twins]
    assert torch.allclose(found.log_q[:, [ids[id] for id in known]], expected[:, known], atol=1e-4)
    assert (found.log_q[:, 0] == FLOOR).all() and found.valid.all() and found.undecided.abs().max() < 1e-6
    assert torch.allclose(found.compatible, torch.ones(len(places)), atol=1e-4)


@pytest.fixture(scope="module")
def story(shared_dir: Path) -> list[str]:
    with gzip.open(shared_dir / "data" / "text" / "tinystories_cased.txt.gz", "rt", encoding="utf-8") as file:
        texts = file.read(200_000).split("<|endoftext|>")[:12]
    return [" ".join(text.split())[:250].rsplit(".", 1)[0] + "." for text in texts]


class Pair:
    """Two small models with different tokenizers, and what both say of a text behind its first words."""

    def __init__(self, models: Path, old: str, new: str, folder: Path) -> None:
        self.tokenizers = [AutoTokenizer.from_pretrained(models / name) for name in (old, new)]
        self.models = [AutoModelForCausalLM.from_pretrained(models / name).eval() for name in (old, new)]
        self.targets = ForeignTargets(Aligner(*self.tokenizers), folder)

    def read(self, text: str):
        row = self.tokenizers[1](text)["input_ids"]
        ends = self.targets.aligner.new.ends(row)
        trained = [index for index, end in enumerate(ends) if end > 50 + text[50:].index(" ")]
        view = self.targets.aligner.view(row, trained)
        with torch.no_grad():
            old, new = (
                model(torch.tensor([ids])).logits[0]
                for model, ids in zip(self.models, (view.old_ids, row), strict=True)
            )
        return row, trained, view, old, new[[index - 1 for index in trained]]


@pytest.fixture(scope="module", params=[("stories260k", "stories290k_bpe"), ("stories290k_bpe", "stories260k")])
def pair(request: pytest.FixtureRequest, shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(shared_dir / "models", *request.param, tmp_path_factory.mktemp("tables"))


def test_along_a_text_the_targets_multiply_to_v1s_likelihood(pair: Pair, story: list[str]):
    spelt = own = count = 0.0
    for text in story:
        row, trained, view, logits, student = pair.read(text)
        found = pair.targets.target(logits, view.places, student, least=0.0)
        spelt += found.log_q[range(len(trained)), [row[index] for index in trained]].sum().item()
        first = view.places[0].first + max(sum(step.kind <= 0 for step in view.places[0].steps) - 1, 0)
        chosen = logits.log_softmax(-1)[range(len(view.old_ids) - 1), view.old_ids[1:]]
        own += chosen[first:].sum().item() - found.compatible[0].log().item()
        count += len(trained)
    assert abs(spelt - own) / count < 0.02


def test_places_do_not_depend_on_each_other(pair: Pair, story: list[str]):
    _, trained, view, logits, student = pair.read(story[0])
    places = view.places
    whole = pair.targets.target(logits, places, student)
    for rows in (slice(0, 1), slice(3, 10), slice(10, None)):
        part = pair.targets.target(logits, places[rows], student[rows])
        assert torch.allclose(part.log_q, whole.log_q[rows], atol=1e-5)
        assert torch.equal(part.valid, whole.valid[rows])
    order = torch.randperm(len(trained)).tolist()
    mixed = pair.targets.target(logits, [places[i] for i in order], student[order])
    assert torch.allclose(mixed.log_q, whole.log_q[order], atol=1e-5)


def test_where_v1_has_no_say_the_student_stands(pair: Pair, story: list[str]):
    _, _, view, logits, student = pair.read(story[1])
    places = [None if number % 3 == 0 else place for number, place in enumerate(view.places)]
    wide = torch.cat([student, torch.full((len(student), 3), -2.0)], dim=1)
    found = pair.targets.target(logits, places, wide, least=0.0)
    whole = pair.targets.target(logits, view.places, student, least=0.0)
    assert torch.allclose(found.log_q[::3], wide[::3].log_softmax(-1), atol=1e-5) and not found.valid[::3].any()
    assert torch.allclose(found.log_q[1::3, : student.size(1)], whole.log_q[1::3], atol=1e-5)
    assert (found.log_q[1::3, student.size(1) :] == FLOOR).all()
    nothing = pair.targets.target(logits, [None] * len(places), student)
    assert torch.allclose(nothing.log_q, student.log_softmax(-1), atol=1e-5) and not nothing.valid.any()
    strict = pair.targets.target(logits, view.places, student, least=1e9)
    assert not strict.valid.any()
    padded = torch.cat([logits, torch.full((len(logits), 5), 3.0)], dim=1).bfloat16().float()
    again = pair.targets.target(padded, view.places, student)
    bare = pair.targets.target(logits.bfloat16().float(), view.places, student)
    assert torch.allclose(again.log_q, bare.log_q, atol=1e-5)


def test_distributions_sum_to_one(pair: Pair, story: list[str]):
    _, _, view, logits, student = pair.read(story[2])
    found = pair.targets.target(logits, view.places, student)
    assert torch.allclose(found.log_q.exp().sum(-1), torch.ones(len(student)), atol=1e-5)
    assert (found.undecided >= 0).all() and (found.undecided <= 1 + 1e-5).all()


@pytest.mark.parametrize("words", [False, True])
def test_unigram_models_teach_and_are_taught(tmp_path: Path, words: bool):
    pieces = {"▁": -4.0, "▁a": -2.0, "▁ab": -1.5, "a": -3.0, "b": -3.0, "c": -3.0, "bc": -2.0, "▁cab": -2.0}
    one, other = unigram(pieces, words=words), byte_level([("a", "b"), (" ", "c"), ("b", "c"), (" ", "ab")], "abc ")
    for old, new in ((one, other), (other, one)):
        targets = ForeignTargets(Aligner(old, new), tmp_path)
        row = new("ab cab abc a bc", add_special_tokens=False)["input_ids"]
        view = targets.aligner.view([*row, new.eos_token_id], range(2, len(row) + 1))
        assert view.aligned and None not in view.places and view.old_ids[-1] == old.eos_token_id
        logits = torch.randn(len(view.old_ids), len(old))
        student = torch.randn(len(view.places), len(new))
        found = targets.target(logits, view.places, student)
        assert torch.allclose(found.log_q.exp().sum(-1), torch.ones(len(view.places)), atol=1e-5)
        end = logits[view.places[-1].first + len(view.places[-1].steps) - 1].softmax(-1)[old.eos_token_id]
        # Nothing may be joined over the end: v1's own probability of it, among what it can say.
        assert found.log_q[-1, new.eos_token_id].exp() >= end
