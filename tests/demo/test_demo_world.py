"""The embedded world: what it generates, and the bases that the package carries."""

from __future__ import annotations

import lzma
import re
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import rows as generator
from corpus import documents, popularity
from lexicon import ISSUES, LINES, QUEUES, TONES
from pretrain import RECIPES, new_model, pretrain, train_tokenizer
from world import AMBIGUOUS_SHARE, SPLITS, products, queue_of, split_of, tickets

from muscle_hf import MuscleError, demo
from muscle_hf.demo import SETTINGS, TASKS, VERSIONS, base, rows

SPLIT_NAMES = ("train", "validation", "test")


def items(task: str, split: str, **options):
    return [TASKS[task].to_item(row, index) for index, row in enumerate(rows(task, split, **options))]


# --- the generator


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_deterministic_and_a_smaller_count_is_a_prefix(task):
    assert rows(task, "train", seed=3, count=40) == rows(task, "train", seed=3, count=60)[:40]
    assert rows(task, "train", seed=3, count=40) != rows(task, "train", seed=4, count=40)


@pytest.mark.parametrize(("task", "kind"), [("routing", "tickets"), ("summary", "tickets"), ("refund", "returns")])
@pytest.mark.parametrize("split", SPLIT_NAMES)
def test_the_rows_of_the_package_are_those_that_the_generator_writes(task, kind, split):
    for seed, count in ((0, 120), (9, 30)):
        assert rows(task, split, seed=seed, count=count) == generator.rows(kind, split, seed, count)


@pytest.mark.slow
def test_the_generator_writes_the_files_of_the_package(tmp_path):
    """All that the demo and the study's seeds use, byte for byte."""
    assert generator.main(["--output", str(tmp_path), "--seeds", "0"]) == 0
    carried = Path(demo.__file__).parent / "data"
    assert {file.name for file in carried.iterdir()} == {
        f"{kind}-{seed}.jsonl.xz" for kind in generator.COUNTS for seed in generator.SEEDS
    }
    for file in tmp_path.iterdir():
        assert lzma.decompress(file.read_bytes()) == lzma.decompress((carried / file.name).read_bytes())
    assert sum(file.stat().st_size for file in carried.iterdir()) < 2_000_000


@pytest.mark.parametrize("task", TASKS)
def test_default_counts_are_the_settings(task):
    for split in SPLIT_NAMES:
        assert len(rows(task, split)) == getattr(SETTINGS[task], split)


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_no_text_even_between_seeds(task):
    texts = {split: {row["text"] for seed in (0, 1) for row in rows(task, split, seed=seed)} for split in SPLIT_NAMES}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    assert not texts["validation"] & texts["test"]
    assert all(split_of(text) == split for split in SPLIT_NAMES for text in texts[split])
    for split in SPLIT_NAMES:
        assert len({row["text"] for row in rows(task, split)}) == getattr(SETTINGS[task], split)


def test_pretraining_text_holds_no_text_of_a_task():
    read = "\n".join(islice(documents(RECIPES["v2"]), 3000))
    for task in TASKS:
        for split in SPLIT_NAMES:
            assert not [row["text"] for row in rows(task, split) if row["text"] in read]


def test_corpora_are_deterministic_and_differ():
    def first(version: str):
        return list(islice(documents(RECIPES[version]), 50))

    assert first("v1") == first("v1")
    assert first("v1") != first("v2")
    assert popularity(RECIPES["v1"]) != popularity(RECIPES["v2"])


def test_unknown_names_are_refused():
    with pytest.raises(KeyError, match="triage"):
        rows("triage", "test")
    with pytest.raises(KeyError, match="pretraining"):
        rows("routing", "pretraining", count=1)
    with pytest.raises(MuscleError, match="seed"):
        rows("routing", "test", seed=10)
    with pytest.raises(MuscleError, match="1200"):
        rows("routing", "test", count=1201)
    with pytest.raises(ValueError, match="v1, v2"):
        base("v3")
    with pytest.raises(ValueError, match="pretraining"):
        next(tickets("dev", 0))


def test_lexicon_is_consistent():
    queue_names = {queue.name for queue in QUEUES}
    assert {issue.queue for issue in ISSUES} <= queue_names | {None}
    assert {line.home for line in LINES} <= queue_names
    wordings = [text for issue in ISSUES for text in (*issue.plain, *issue.idioms)]
    assert all(text.count("{p}") == 1 for text in wordings)
    assert len(set(wordings)) == len(wordings)
    assert len({product.name for product in products()}) == len(products())
    assert Counter(product.line.name for product in products()) == dict.fromkeys(
        (line.name for line in LINES), len(products()) // len(LINES)
    )


def test_tickets_are_labelled_by_the_rule_and_hold_what_they_say():
    for ticket in islice(tickets("train", 7), 500):
        assert ticket.queue == queue_of(ticket.issue, ticket.product)
        assert ticket.product.name in ticket.text
        assert ticket.tone in TONES
        assert not re.search(r"[{}|]|  ", ticket.text)
        assert ticket.product.line.device or not ticket.issue.device_only


def test_queues_are_balanced_and_ambiguous_tickets_have_their_share():
    sample = list(islice(tickets("test", 0), 3000))
    for count in Counter(ticket.queue for ticket in sample).values():
        assert abs(count / 3000 - 1 / len(QUEUES)) < 0.03
    assert abs(sum(ticket.ambiguous for ticket in sample) / 3000 - AMBIGUOUS_SHARE) < 0.02
    assert {ticket.wording for ticket in sample} == {"plain", "idiom"}
    assert {ticket.tone for ticket in sample} == set(TONES)


def test_ambiguous_tickets_mention_a_problem_of_another_queue_and_either_may_come_first():
    sample = [ticket for ticket in islice(tickets("test", 1), 3000) if ticket.ambiguous]
    first = [min(_places(ticket.text, ticket.product.name)) < len(ticket.text) * 0.45 for ticket in sample]
    assert 0.3 < sum(first) / len(first) < 0.7
    names = [product.name for product in products()]
    assert all(sum(name in ticket.text for name in names) >= 1 for ticket in sample)


def _places(text: str, word: str) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(word), text)]


# --- the tasks


def test_routing_offers_every_queue_and_the_answer_is_the_rows():
    for item, row in zip(items("routing", "test", count=200), rows("routing", "test", count=200), strict=True):
        assert item.choices == tuple(f" {queue.name}" for queue in QUEUES)
        assert item.target == f" {row['queue']}"
        assert row["text"] in item.prompt
        assert row["queue"] not in item.prompt.split("\n")[-1]


def test_refund_steps_compute_to_the_final_number():
    fees = {line.name: line.fee for line in LINES}
    for item, row in zip(items("refund", "test", count=300), rows("refund", "test", count=300), strict=True):
        sums = re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", item.target)
        assert len(sums) == 2
        for left, sign, right, result in sums:
            assert int(left) + int(right) * (1 if sign == "+" else -1) == int(result)
        assert int(sums[0][2]) == (fees[row["line"]] if row["opened"] else 0)
        assert sums[0][3] == sums[1][0]
        final = re.findall(r"\d+", item.target)[-1]
        assert int(final) == row["refund"] == int(sums[1][3])
        assert int(final) == row["price"] - int(sums[0][2]) + row["postage"]
        assert {str(row["price"]), str(row["postage"])} <= set(re.findall(r"\d+", item.prompt))


def test_summaries_are_one_line_that_names_product_and_problem():
    for item, row in zip(items("summary", "test", count=200), rows("summary", "test", count=200), strict=True):
        assert "\n" not in item.target
        assert row["product"] in item.target
        assert row["tone"] in item.target
        assert any(issue.summary in item.target for issue in ISSUES if issue.name == row["issue"])


@pytest.mark.parametrize("task", TASKS)
def test_items_have_unique_ids_and_columns_for_slices(task):
    found = items(task, "test", count=100)
    assert len({item.id for item in found}) == 100
    assert {"product", "line"} <= set(found[0].columns)


def test_every_split_but_pretraining_is_a_split_of_the_tasks():
    assert set(SPLITS) - {"pretraining"} == set(SPLIT_NAMES)


# --- the bases


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base("v1"))


def test_tokenizer_round_trips_and_is_shared(tokenizer):
    from transformers import AutoTokenizer

    assert tokenizer.is_fast
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    other = AutoTokenizer.from_pretrained(base("v2"))
    assert other.get_vocab() == tokenizer.get_vocab()
    texts = [ticket.text for ticket in islice(tickets("test", 5), 100)] + ["Ünïcode 😀\n\ttabs  and #### 42"]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert ids == other(text)["input_ids"]


@pytest.mark.parametrize("task", TASKS)
def test_prompts_are_short_and_continuations_tokenize_apart(task, tokenizer):
    for item in items(task, "test", count=200):
        prompt = tokenizer(item.prompt)["input_ids"]
        whole = tokenizer(item.prompt + item.target)["input_ids"]
        assert len(prompt) <= 96
        assert len(whole) <= 128
        assert whole[: len(prompt)] == prompt
        assert len(whole) - len(prompt) <= TASKS[task].max_new_tokens or not item.references


def test_bases_load_plainly_are_small_and_differ(tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    models = {version: AutoModelForCausalLM.from_pretrained(base(version)) for version in VERSIONS}
    for version, model in models.items():
        assert model.dtype == torch.float32
        assert model.config.model_type == "llama"
        assert sum(parameter.numel() for parameter in model.parameters()) < 1_200_000
        assert len(tokenizer) == model.config.vocab_size
        assert {model.config.pad_token_id, model.config.eos_token_id} == {
            tokenizer.pad_token_id,
            tokenizer.eos_token_id,
        }
        folder = base(version)
        assert not list(folder.glob("*.bin")) and not list(folder.glob("*.pt"))
        assert sum(path.stat().st_size for path in folder.iterdir()) < 5_000_000
    old, new = (model.state_dict() for model in models.values())
    assert old.keys() == new.keys()
    assert all(not torch.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize("version", VERSIONS)
def test_bases_know_the_world_better_than_chance(version, tokenizer):
    import math

    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base(version))
    loss = []
    for ticket in islice(tickets("test", 11), 20):
        batch = tokenizer(ticket.text, return_tensors="pt")
        with torch.no_grad():
            loss.append(model(**batch, labels=batch["input_ids"]).loss.item())
    assert sum(loss) / len(loss) < 0.4 * math.log(len(tokenizer))


def test_pretraining_is_deterministic(tokenizer):
    import torch

    recipe = replace(RECIPES["v1"], tokens=6_000)
    first, again, other = (
        pretrain(new_model(tokenizer, seed), recipe, tokenizer, log=lambda line: None).state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.slow
def test_the_embedded_tokenizer_is_the_one_that_the_corpora_give(tokenizer):
    assert train_tokenizer().get_vocab() == tokenizer.get_vocab()
