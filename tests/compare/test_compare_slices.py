"""Slices and clusters of a comparison."""

from __future__ import annotations

import dataclasses

import pytest
from compare_files import choice_predictions, score_predictions, sources

from muscle_hf import MuscleError
from muscle_hf.compare import (
    AnalysisOptions,
    compare,
)


def sliced(items=400):
    """The new model fails on angry items only."""
    old = choice_predictions(items, 0.9, 1)
    angry = [p.columns["tone"] == "angry" for p in old]
    wrong = [dataclasses.replace(p, prediction=(p.target + 1) % 4, correct=False) for p in old]
    return old, [wrong[i] if angry[i] and i % 3 == 0 else p for i, p in enumerate(old)]


def test_the_slice_that_regresses_comes_first():
    update = compare(*sources(*sliced())).tasks[0].updates[0]
    first, *others = update.slices
    assert (first.column, first.value, first.verdict) == ("tone", "angry", "worse")
    calm = next(entry for entry in others if entry.value == "calm")
    assert calm.verdict == "no difference shown" and calm.nfr.value == 0
    assert first.items + calm.items == 400
    for entry in update.slices:
        assert sum(entry.counts.values()) == entry.items and entry.p_adjusted >= entry.p_value
    assert first.counts["negative_flips"] + calm.counts["negative_flips"] == update.counts["negative_flips"]


def test_the_correction_grows_with_the_number_of_slices():
    old, new = sliced()
    one = compare(*sources(old, new), analysis=AnalysisOptions(slices=["tone"])).tasks[0].updates[0].slices
    two = compare(*sources(old, new), analysis=AnalysisOptions(slices=["tone", "source"])).tasks[0].updates[0].slices
    assert len(one) == 2 and len(two) == 82
    find = lambda slices: next(entry for entry in slices if entry.value == "angry")  # noqa: E731
    assert find(two).p_adjusted > find(one).p_adjusted and find(two).p_value == find(one).p_value


def test_numbers_are_cut_into_quarters_and_none_means_no_slices():
    old, new = sliced()
    quarters = compare(*sources(old, new), analysis=AnalysisOptions(slices=["length"])).tasks[0].updates[0].slices
    assert len(quarters) == 4 and sum(entry.items for entry in quarters) == 400
    assert compare(*sources(old, new), analysis=AnalysisOptions(slices=())).tasks[0].updates[0].slices == []


def test_numbers_of_a_csv_file_are_numbers(tmp_path):
    """As pandas writes it: an index without a name, and nothing where a number is missing."""
    paths = []
    for name, predictions in zip(("old", "new"), sliced(), strict=True):
        rows = [
            f"{i},{p.id},{p.correct},{'' if i == 0 else p.columns['length']},{p.columns['tone']}\n"
            for i, p in enumerate(predictions)
        ]
        path = tmp_path / f"{name}.csv"
        path.write_text("".join([",id,correct,length,tone\n", *rows]), encoding="utf-8")
        paths.append(str(path))
    update = compare(*paths, analysis=AnalysisOptions(slices=["length", "tone"])).tasks[0].updates[0]
    quarters = [entry for entry in update.slices if entry.column == "length"]
    assert len(quarters) == 4 and sum(entry.items for entry in quarters) == 399
    assert {entry.value for entry in update.slices if entry.column == "tone"} == {"calm", "angry"}


def test_slices_of_scores():
    old, new = score_predictions(200, 0.5, 1), score_predictions(200, 0.5, 1)
    new = [dataclasses.replace(p, score=p.score / 2) if i % 2 else p for i, p in enumerate(new)]
    first, second = compare(*sources(old, new)).tasks[0].updates[0].slices
    assert (first.value, first.verdict, second.verdict) == ("angry", "worse", "no difference shown")


def test_unknown_columns():
    with pytest.raises(MuscleError, match=r"'tome'.*'tone'"):
        compare(*sources(*sliced()), analysis=AnalysisOptions(slices=["tome"]))
    homeless = [dataclasses.replace(p, columns={"source": None if p.id == "item-3" else "a"}) for p in sliced()[0]]
    with pytest.raises(MuscleError, match="item 'item-3' has no 'source'"):
        compare(*sources(homeless, homeless), analysis=AnalysisOptions(cluster="source"))
    with pytest.raises(MuscleError, match="no column 'origin' that names clusters"):
        compare(*sources(*sliced()), analysis=AnalysisOptions(cluster="origin"))


def test_clusters_make_everything_less_certain():
    old = choice_predictions(300, 0.9, 1)
    wrong = [dataclasses.replace(p, prediction=(p.target + 1) % 4, correct=False) for p in old]
    new = [wrong[i] if (i // 5) % 4 == 0 else p for i, p in enumerate(old)]  # whole sources fail
    apart = compare(*sources(old, new)).tasks[0].updates[0]
    together = compare(*sources(old, new), analysis=AnalysisOptions(cluster="source")).tasks[0].updates[0]
    for name in ("nfr", "btc", "relative_nfr"):
        narrow, wide = apart.rates[name], together.rates[name]
        assert wide.value == narrow.value and wide.high - wide.low > narrow.high - narrow.low
    assert together.change.high - together.change.low > apart.change.high - apart.change.low
    assert together.p_value > apart.p_value


@pytest.mark.parametrize("flipped", [0, 20, 100])
def test_clusters_make_the_flips_of_a_slice_less_certain(flipped):
    """Whole sources fail, none and all of a slice among them."""
    old = choice_predictions(200, 1.0, 1)
    old = [dataclasses.replace(p, columns=p.columns | {"half": "ab"[i // 100]}) for i, p in enumerate(old)]
    new = [dataclasses.replace(p, prediction=(p.target + 1) % 4, correct=False) for p in old[:flipped]] + old[flipped:]
    first, again = (
        {
            entry.value: entry.nfr
            for entry in compare(*sources(old, new), analysis=AnalysisOptions(slices=["half"], cluster=cluster))
            .tasks[0]
            .updates[0]
            .slices
        }
        for cluster in (None, "source")
    )
    for half in "ab":
        narrow, wide = first[half], again[half]
        assert (wide.value, wide.count, wide.total) == (narrow.value, narrow.count, narrow.total)
        assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_a_slice_that_gets_better_is_never_before_one_that_gets_worse():
    old, new = choice_predictions(400, 0.6, 1), choice_predictions(400, 0.65, 2)
    changes = [entry.change.value for entry in compare(*sources(old, new)).tasks[0].updates[0].slices]
    worse = [change < 0 for change in changes]
    assert any(worse) and not all(worse) and worse == sorted(worse, reverse=True)
