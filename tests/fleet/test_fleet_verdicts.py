"""What ships, by the answers of all models; nothing is trained."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from muscle_hf.compare import Budget
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.predictions import Prediction
from muscle_hf.fleet.lock import LOCK_FILE, Lock, Version
from muscle_hf.fleet.run import _entry
from muscle_hf.fleet.settings import Fleet, FleetSettings, FleetTask, UpdateSettings
from muscle_hf.fleet.task import Outcome, decide, outcome_of
from muscle_hf.pipeline.config import ModelSettings, RunSettings, ServerSettings

ITEMS = 400


def answers(*wrong: int, instead: int = 1) -> list[Prediction]:
    """Answers to items of three choices, of which some are wrong."""
    texts = ["a", "b", "c"]
    said = [instead if item in wrong else 0 for item in range(ITEMS)]
    return [Prediction("way", str(i), c, 0, c == 0, None, "acc", f"h{i}", choices=texts) for i, c in enumerate(said)]


def task_in(folder, adapter=None) -> FleetTask:
    sides = {"old": ModelSettings("v1", adapter=adapter), "new": ModelSettings("v2")}
    settings = RunSettings(**sides, output_dir=str(folder / "way"), task="trec")
    (folder / "way").mkdir()
    return FleetTask("way", settings, Budget(limits={"max_nfr": {"*": 0.05}}), [])


def decided(task, old, plain, compatible, *before) -> Outcome:
    given = {"old": old, "new": plain, "muscle": compatible}
    given |= {f"before{place}": rows for place, rows in enumerate(before)}
    run = SimpleNamespace(evaluate=lambda: None, answers=given.get, models=list(given)[:3], ancestors=before)
    return decide(run, task)


@pytest.mark.parametrize(
    ("plain", "compatible", "verdict", "undecided"),
    [
        (4, 0, "ship plain", False),
        (4, 60, "ship plain", False),
        (60, 4, "ship compatible", False),
        (20, 4, "ship compatible", False),
        (60, 60, "hold", False),
        (60, 20, "hold", True),
        (20, 60, "hold", True),
    ],
)
def test_the_plain_update_ships_where_it_passes_else_the_compatible_one(
    plain, compatible, verdict, undecided, tmp_path
):
    task = task_in(tmp_path)
    found = decided(task, answers(), answers(*range(plain)), answers(*range(compatible)))
    assert (found.verdict, found.undecided) == (verdict, undecided)
    near = "plain" if (plain, compatible) == (20, 60) else "compatible"
    assert verdict != "hold" or found.reason.startswith(f"{near}: ")
    assert found.now.nfr["new"].value == plain / ITEMS and found.quality["muscle"].value == 1 - compatible / ITEMS
    assert found == outcome_of(task)
    assert (task.folder / "report.html").is_file() and not (task.folder / "report_first.html").exists()


def test_errors_are_counted_against_every_version_that_users_saw(tmp_path):
    task = task_in(tmp_path)
    # v1 errs on 0 to 39; what users see now on 0 to 19; the plain update on none of these; the compatible one again on
    # 0 to 9, on the first five with v1's answer.
    first, now, plain = answers(*range(40), instead=2), answers(*range(20)), answers(*range(300, 310))
    compatible = [*answers(*range(5), instead=2)[:5], *answers(*range(10))[5:]]
    found = decided(task, now, plain, compatible, first)
    one, two = found.generations
    assert [one.name, two.name] == ["v1", "v2"]
    assert (one.shed, one.returned.count, one.inherited.count) == (40, 10, 5)
    assert (two.shed, two.returned.count, two.inherited.count) == (20, 10, 5)
    assert one.nfr["muscle"].value == 0 and one.nfr["new"].value == 10 / ITEMS
    assert (task.folder / "report_first.html").is_file()


def test_a_v1_known_by_its_answers_moves_with_the_lock_and_is_checked(tmp_path):
    (tmp_path / "v2").mkdir()
    log = tmp_path / "v2" / "log.jsonl"
    log.write_text("{}")
    served = ModelSettings("v1", server=ServerSettings("http://localhost/v1", "way"))
    versions = {"way": ModelSettings("v2", answers=[str(log)]), "there": served}
    Lock({name: {"now": Version.of(side), "ancestors": []} for name, side in versions.items()}).write(tmp_path / "v2")
    moved = (tmp_path / "v2").rename(tmp_path / "released")
    lock = Lock.read(moved / LOCK_FILE)
    assert lock.old_side("way")[0].side.answers == [str(moved / "log.jsonl")]
    assert lock.old_side("there")[0].side == served
    (moved / "log.jsonl").write_text("[]")
    with pytest.raises(MuscleError, match="SHA-256"):
        lock.old_side("way")


@pytest.mark.parametrize(("flips", "base", "kinds"), [((4, 4), "v2", ["plain", "first"]), ((60, 60), "v1", ["first"])])
def test_the_lock_says_what_users_see_now(flips, base, kinds, tmp_path):
    task = task_in(tmp_path, adapter="acme/way-v1")
    found = decided(task, answers(), *(answers(*range(number)) for number in flips))
    entry = _entry(task, found, Fleet(FleetSettings(UpdateSettings("v1", "v2"), []), [task]))
    assert entry["now"].side.base == base
    assert [entry["now"].kind, *(part.kind for part in entry["ancestors"])] == kinds
    if base == "v1":
        assert entry["now"].side.adapter == "acme/way-v1"
