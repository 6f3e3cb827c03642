"""The metrics as ``evaluate`` modules: instantiated, loaded by path, combined; nothing is fetched."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from muscle_hf import MuscleError
from muscle_hf.metrics import flip_metrics, score_texts, smooth_flip_metrics
from muscle_hf.metrics.spaces import SPACES, space_folder

evaluate = pytest.importorskip("evaluate")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A closed port in place of the Hub.

    The caches stay those of the whole process: Python finds the modules that ``evaluate`` copies in one place only.
    """
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


TEXTS = {"old_predictions": ["the cat sat", "a dog"], "predictions": ["the cat", "a dog ran"]}
REFERENCES = ["the cat sat", "a dog ran off"]


def test_flips_loaded_by_path_are_the_functions():
    flips = evaluate.load(space_folder("muscle_flips"))
    old, new, right = [0, 1, 2, 0], [0, 2, 2, 1], [0, 1, 2, 1]
    found = flips.compute(old_predictions=old, predictions=new, references=right)
    assert found == pytest.approx(flip_metrics(old, new, right), nan_ok=True)
    several = [[0], [1, 2], [2], [3]]
    with_compat = flips.compute(old_predictions=old, predictions=new, references=several, compat_predictions=old)
    assert with_compat == pytest.approx(flip_metrics(old, new, several, compat_predictions=old), nan_ok=True)
    assert math.isnan(flips.compute(old_predictions=["x"], predictions=["y"], references=["y"])["bec"])


def test_batches_add_up_and_the_third_model_can_be_an_input():
    flips = evaluate.load(space_folder("muscle_flips"), "compat")
    for row in [(0, 0, 1, 0), (1, 0, 1, 1)]:
        flips.add_batch(
            old_predictions=[row[0]], predictions=[row[1]], references=[row[2]], compat_predictions=[row[3]]
        )
    expected = flip_metrics([0, 1], [0, 0], [1, 1], compat_predictions=[0, 1])
    assert flips.compute() == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("name", ["default", "rougeL", "chrf"])
def test_smooth_flips_score_by_their_configuration(name):
    smooth = evaluate.load(space_folder("muscle_smooth_flips"), name)
    similarity = "rouge1" if name == "default" else name
    scores = [score_texts(TEXTS[key], REFERENCES, similarity) for key in ("old_predictions", "predictions")]
    assert smooth.compute(**TEXTS, references=REFERENCES) == pytest.approx(smooth_flip_metrics(*scores), nan_ok=True)


def test_instantiated_directly_with_a_similarity_of_ones_own():
    from muscle_hf.metrics.spaces.muscle_smooth_flips.muscle_smooth_flips import MuscleSmoothFlips

    found = MuscleSmoothFlips().compute(
        **TEXTS, references=REFERENCES, similarity=lambda p, r: float(len(p)), epsilon=3, compat_predictions=["", "ab"]
    )
    assert (found["regressed"], found["improved"], found["regressed_c"]) == (1, 1, 1)
    assert (found["m_r"], found["m_r_c"]) == (4, 11)


def test_combined_with_each_other_and_with_batches():
    both = evaluate.combine([evaluate.load(space_folder(name)) for name in SPACES])
    at_once = both.compute(**TEXTS, references=REFERENCES)
    both.add_batch(**TEXTS, references=REFERENCES)
    in_batches = both.compute()
    assert at_once == pytest.approx(in_batches, nan_ok=True)
    assert at_once["nfr"] == 0.5 and at_once["nfr_smooth"] == 0.5


def test_unknown_names():
    with pytest.raises(MuscleError, match="muscle_flips"):
        space_folder("flips")
    with pytest.raises(ValueError, match="rouge1"):
        evaluate.load(space_folder("muscle_smooth_flips"), "rogue")


@pytest.mark.parametrize("name", SPACES)
def test_folders_are_whole_spaces(name):
    folder = Path(space_folder(name))
    head = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert head["sdk"] == "gradio" and (folder / head["app_file"]).is_file()
    assert {"evaluate", "metric"} <= set(head["tags"]) and len(head["short_description"]) <= 60
    assert "muscle-hf" in (folder / "requirements.txt").read_text(encoding="utf-8")
    compile((folder / head["app_file"]).read_text(encoding="utf-8"), head["app_file"], "exec")
