"""What rows without labels could follow: counted from the predictions of both models."""

from __future__ import annotations

import dataclasses
import html
import json
from pathlib import Path

import numpy as np
import paths
import pytest
from compare_files import choice_predictions, score_predictions, sources, write, write_lines

from muscle_hf import MuscleConfig
from muscle_hf.cli.main import main
from muscle_hf.compare import ReadOptions, measure_targets
from muscle_hf.compare.targets import choose_target, probabilities_of, target_choices
from muscle_hf.errors import MuscleError
from muscle_hf.report import targets

LOGS = paths.DATA / "lm_eval"


def likely(items: int, accuracy: float, sure: float, seed: int):
    """Predictions of a model whose confidence in its choice is about ``sure``, and more where it is right; other
    choices are equally likely."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in choice_predictions(items, accuracy, seed):
        p = np.full(4, 0.0)
        top = min(0.99, max(0.3, rng.normal(sure + (0.1 if row.correct else -0.1), 0.1)))
        p[:] = (1 - top) / 3
        p[row.prediction] = top
        rows.append(dataclasses.replace(row, log_likelihoods=np.log(p).tolist()))
    return rows


def test_every_target_by_hand():
    """Three items: both agree; v2 surer; v1 a little surer."""
    old = np.array([[0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
    new = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    choices = target_choices(old, new, [0.6, 0.3])
    assert list(choices) == ["always_new", "mean(0.3)", "mean(0.6)", "more_confident_sequence", "always_old"]
    assert {mask: chosen.tolist() for mask, chosen in choices.items()} == {
        "always_new": [0, 1, 0],
        "mean(0.3)": [0, 1, 0],
        "mean(0.6)": [0, 0, 1],
        "more_confident_sequence": [0, 1, 1],
        "always_old": [0, 0, 1],
    }


def test_probabilities_of_items_with_different_numbers_of_choices():
    found = probabilities_of([[0.0, 0.0], [0.0, np.log(2), np.log(5)]])
    assert np.allclose(found, [[0.5, 0.5, 0], [1 / 8, 2 / 8, 5 / 8]])


def test_the_rule_allows_one_standard_error():
    """100 items, v1 right everywhere: the best target is right everywhere too, the others lose some and flip them."""
    right = np.ones((3, 100), dtype=bool)
    right[1, :1] = False  # behind by 0.01, standard error 0.00995: just outside
    right[2, :4] = False
    old = np.ones(100, dtype=bool)
    assert choose_target(["a", "b", "c"], right, old) == "a"
    # v1 was wrong where "a" is right: "b" is as accurate as "a" within chance, and flips less.
    old = np.ones(100, dtype=bool)
    old[:2] = False
    right = np.ones((2, 100), dtype=bool)
    right[0, 10:12], right[1, :3] = False, False  # 98 and 97 right; 2 and 1 negative flips
    assert choose_target(["a", "b"], right, old) == "b"


def test_figures_are_those_of_the_models():
    old, new = likely(600, 0.7, 0.6, 1), likely(600, 0.72, 0.8, 2)
    (found,) = measure_targets(*sources(old, new), shares=[0.5])
    right = {side: np.array([row.correct for row in rows]) for side, rows in (("old", old), ("new", new))}
    by_mask = {target.mask: target for target in found.targets}
    assert found.items == 600 and found.accuracy_old.value == right["old"].mean()
    assert by_mask["always_new"].accuracy.value == found.accuracy_new.value == right["new"].mean()
    assert by_mask["always_new"].nfr.value == found.nfr_new.value == (right["old"] & ~right["new"]).mean()
    assert by_mask["always_new"].change_of_nfr.value == 0
    assert by_mask["always_old"].nfr.value == 0
    mean = by_mask["mean(0.5)"]
    assert mean.change_of_nfr.value == pytest.approx(mean.nfr.value - found.nfr_new.value)
    assert mean.change_of_nfr.low < mean.change_of_nfr.value < mean.change_of_nfr.high
    assert mean.change_of_accuracy.value == pytest.approx(mean.accuracy.value - found.accuracy_new.value)


def test_a_surer_model_decides_more_and_a_useless_old_one_is_left_out():
    old, new = likely(800, 0.75, 0.9, 1), likely(800, 0.75, 0.6, 2)
    (found,) = measure_targets(*sources(old, new))
    nfr = [target.nfr.value for target in found.targets if target.mask.startswith("mean")]
    assert nfr == sorted(nfr, reverse=True) and nfr[0] < found.nfr_new.value
    (useless,) = measure_targets(*sources(likely(800, 0.25, 0.9, 1), likely(800, 0.95, 0.5, 2)))
    assert useless.chosen.mask == "always_new"


def test_every_chosen_mask_is_a_setting(tmp_path):
    (found,) = measure_targets(*sources(likely(100, 0.7, 0.6, 1), likely(100, 0.7, 0.6, 2)))
    for target in found.targets:
        MuscleConfig(str(tmp_path), use_cpu=True, mask=target.mask, transfer_mask=target.mask)


def test_normalized_accuracy_compares_normalized_likelihoods():
    """The log-likelihood favours the short choice, per character the long one is likelier: as the metric says."""
    texts, values = ["no", "certainly, at once"], [-2.0, -9.0]
    rows = [
        dataclasses.replace(
            row, metric="acc_norm", choices=texts, log_likelihoods=values, prediction=1, target=1, correct=True
        )
        for row in choice_predictions(20, 1.0, 1)
    ]
    (found,) = measure_targets(*sources(rows, rows))
    assert all(target.accuracy.value == 1 for target in found.targets)


@pytest.mark.parametrize("task", ["endings"])
def test_logs_of_the_harness(task):
    (found,) = measure_targets(str(LOGS / "old"), str(LOGS / "new"), read=ReadOptions(tasks=[task]))
    assert found.items == 40 and found.targets[0].change_of_accuracy.value == 0


def harness_log(folder: Path, targets: list[str], choices: str = "ABC") -> str:
    """A log in which the second choice is chosen everywhere."""
    folder.mkdir()
    rows = [
        {
            "doc_id": i,
            "doc": {"q": i},
            "target": target,
            "doc_hash": f"{i:064x}",
            "target_hash": f"{i:064x}",
            "arguments": {f"gen_args_{k}": {"arg_0": f"q{i}", "arg_1": f" {text}"} for k, text in enumerate(choices)},
            "resps": [],
            "filtered_resps": [[str(-5.0 + 4 * (k == 1)), "False"] for k in range(len(choices))],
            "filter": "none",
            "metrics": ["acc"],
            "prompt_hash": f"{i:064x}",
            "acc": float(target in ("B", "1")),
        }
        for i, target in enumerate(targets)
    ]
    write_lines(folder / "samples_labels_2024-01-01T00-00-00.000000.jsonl", rows)
    return str(folder)


def test_a_log_whose_target_is_the_text_of_a_choice(tmp_path):
    log = harness_log(tmp_path / "old", ["B", "A", "1", "2"])
    (found,) = measure_targets(log, log)
    assert found.accuracy_old.value == 0.5 and {target.accuracy.value for target in found.targets} == {0.5}
    # choices that are numbers: digits are an index
    log = harness_log(tmp_path / "numbers", ["1", "0"], choices="213")
    (found,) = measure_targets(log, log)
    assert {target.accuracy.value for target in found.targets} == {0.5}
    unknown = harness_log(tmp_path / "unknown", ["B", "E"])
    with pytest.raises(MuscleError, match=r"item '1': which choice is right cannot be told from the target 'E'"):
        measure_targets(unknown, unknown)


def test_what_cannot_be_mixed_is_refused():
    old, new = likely(30, 0.7, 0.6, 1), likely(30, 0.7, 0.6, 2)
    with pytest.raises(MuscleError, match=r"no log-likelihood of each choice.*mean\(0.65\)"):
        measure_targets(*sources(score_predictions(30, 0.5, 1), score_predictions(30, 0.6, 2)))
    with pytest.raises(MuscleError, match=r"predictions of the new model have no log-likelihood.*'item-7'"):
        new_without = [dataclasses.replace(row, log_likelihoods=None) if i == 7 else row for i, row in enumerate(new)]
        measure_targets(*sources(old, new_without))
    with pytest.raises(MuscleError, match="different numbers of choices"):
        measure_targets(*sources(old, [dataclasses.replace(r, log_likelihoods=r.log_likelihoods[:3]) for r in new]))
    for shares in ([], [0.5, 1.0], [-0.1]):
        with pytest.raises(MuscleError, match="between 0 and 1"):
            measure_targets(*sources(old, new), shares=shares)
    with pytest.raises(MuscleError, match="did not answer the same items"):
        measure_targets(*sources(old, new[:20]))


def test_names_from_data_are_only_text(tmp_path):
    """A task's name reaches the page and the terminal escaped."""
    rows = [
        [dataclasses.replace(row, task="<img src=x onerror=alert(1)>") for row in likely(50, 0.7, 0.6, seed)]
        for seed in (1, 2)
    ]
    assert "<img" not in targets.page(measure_targets(*sources(*rows)))


def test_what_was_left_out_is_said(tmp_path, capsys):
    files = [
        write(tmp_path / f"{name}.jsonl", likely(60, 0.7, 0.6, seed)[:rows])
        for name, seed, rows in (("old", 1, 60), ("new", 2, 50))
    ]
    page = tmp_path / "targets.html"
    assert main(["targets", *files, "--allow-partial", "--html", str(page)]) == 0
    (warning,) = measure_targets(*files, missing="drop")[0].warnings
    assert "10" in warning
    assert warning in " ".join(capsys.readouterr().out.split())
    assert warning in html.unescape(page.read_text(encoding="utf-8"))


def test_the_command(tmp_path, capsys):
    files = [
        write(tmp_path / f"{name}.jsonl", likely(300, accuracy, 0.6, seed))
        for name, accuracy, seed in (("old", 0.65, 1), ("new", 0.75, 2))
    ]
    assert main(["targets", *files, "--shares", "0.4", "0.6"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "mean(0.6)" in shown and "Train with mask:" in shown and "mean(0.5)" not in shown
    assert main(["targets", *files, "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data[0]["chosen"] in data[0]["targets"] and data[0]["items"] == 300
    page = tmp_path / "targets.html"
    assert main(["targets", *files, "--html", str(page)]) == 0
    shown = page.read_text(encoding="utf-8")
    assert data[0]["chosen"]["mask"] in shown and "<svg" in shown and "<script></script>" in shown
    assert main(["targets", *files, "--shares", "2"]) == 2
    assert "between 0 and 1" in capsys.readouterr().err
    assert main(["targets", *files, "--level", "7"]) == 2
    assert main(["targets", *files, "--json", str(tmp_path / "nowhere" / "x.json")]) == 2
