"""Files that are read and written: nothing that is read is lost, devices and links stay, errors say why."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from muscle_hf.cli.main import main
from muscle_hf.compare import compare
from muscle_hf.errors import MuscleError, SaveError
from muscle_hf.evaluation.predictions import read_predictions
from muscle_hf.evaluation.rows import read_rows
from muscle_hf.files import check_outputs, read_json, read_yaml, write_json, write_text
from muscle_hf.record import json_sha256
from muscle_hf.words import did_you_mean

ROWS = [{"id": i, "prediction": i % 3, "target": 0} for i in range(60)]
posix = pytest.mark.skipif(os.name == "nt", reason="devices and links of POSIX")


def log(path: Path, shift: int = 0) -> str:
    rows = ({**row, "prediction": (row["id"] + shift) % 3} for row in ROWS)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def sides(tmp_path):
    return [log(tmp_path / "old.jsonl"), log(tmp_path / "new.jsonl", 1)]


def run_program(*words: str, **how) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "muscle_hf", *words], text=True, timeout=120, **how)


# ---- Outputs ----


@pytest.mark.parametrize("option", ["--json", "--html", "--markdown", "--junit"])
@pytest.mark.parametrize("read", ["old.jsonl", "noise.json", "limits.yaml", "linked.jsonl"])
def test_a_comparison_is_not_written_over_what_it_reads(option, read, sides, tmp_path, capsys):
    assert main(["noise", *sides, "--json", str(tmp_path / "noise.json")]) == 0
    (tmp_path / "limits.yaml").write_text("max_nfr: 0.9\n")
    os.link(tmp_path / "new.jsonl", tmp_path / "linked.jsonl")
    before = (tmp_path / read).read_bytes()
    more = ["--noise", str(tmp_path / "noise.json"), "--budget", str(tmp_path / "limits.yaml")]
    assert main(["compare", *sides, *more, option, str(tmp_path / read)]) == 2
    assert read in capsys.readouterr().err
    assert (tmp_path / read).read_bytes() == before


def test_no_other_command_writes_over_what_it_reads(sides, tmp_path):
    before = Path(sides[0]).read_bytes()
    assert main(["noise", *sides, "--json", sides[0]]) == 2
    assert main(["targets", *sides, "--html", sides[0]]) == 2
    (tmp_path / "rows.csv").write_text("sentence,label\nfine,1\n")
    words = ["evaluate", "nosuch/model", "--task", "sst2", "--data", str(tmp_path / "rows.csv"), "--overwrite"]
    assert main([*words, "--output", str(tmp_path / "rows.csv")]) == 2
    assert Path(sides[0]).read_bytes() == before and "fine" in (tmp_path / "rows.csv").read_text()


def test_logs_of_a_folder_that_is_read_are_kept_and_reports_beside_them_replaced(tmp_path):
    (tmp_path / "logs").mkdir()
    mine = Path(log(tmp_path / "logs" / "mine.jsonl"))
    (tmp_path / "logs" / "report.html").write_text("of yesterday")
    check_outputs([tmp_path / "logs" / "report.html", tmp_path / "logs" / "new.json"], [tmp_path / "logs"])
    with pytest.raises(MuscleError, match=r"mine\.jsonl"):
        check_outputs([mine], [tmp_path / "logs"])


@posix
def test_a_link_stays_and_its_file_is_replaced_with_its_permissions(tmp_path):
    (tmp_path / "there").mkdir()
    file = tmp_path / "there" / "result.json"
    file.write_text("old")
    file.chmod(0o600)
    (tmp_path / "link").symlink_to(file)
    write_json(tmp_path / "link", {"new": 1})
    assert (tmp_path / "link").is_symlink() and json.loads(file.read_text()) == {"new": 1}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (tmp_path / "dangling").symlink_to(tmp_path / "there" / "later.json")
    write_text(tmp_path / "dangling", "text")
    assert (tmp_path / "there" / "later.json").read_text() == "text"
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["later.json", "result.json"]


def test_a_new_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / ("n" * 255), "text")
    assert (tmp_path / ("n" * 255)).stat().st_mode == (tmp_path / "plain").stat().st_mode


@posix
def test_devices_and_pipes_are_written_to_as_they_are(tmp_path, sides):
    assert main(["compare", *sides, "--json", "/dev/null", "--quiet"]) == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    reading, writing = os.pipe()
    write_text(f"/dev/fd/{writing}", "through the pipe")
    assert os.read(reading, 100) == b"through the pipe"
    os.close(reading), os.close(writing)


@posix
@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_the_standard_output_gets_the_result_alone(name, sides, tmp_path):
    with open(tmp_path / "out", "w") as out:
        out.write("# before\n")
        out.flush()
        assert run_program("compare", *sides, "--json", name, stdout=out).returncode == 0
        out.write("# after\n")
    first, *result, last = (tmp_path / "out").read_text().splitlines()
    assert (first, last) == ("# before", "# after")
    assert json.loads("\n".join(result))["tasks"][0]["items"] == len(ROWS)


@posix
@pytest.mark.parametrize(("limit", "code"), [("90%", 0), ("1%", 1)])
def test_a_reader_who_leaves_does_not_change_the_gate(limit, code, sides, tmp_path):
    page = tmp_path / "report.html"
    command = f"'{sys.executable}' -m muscle_hf compare {' '.join(sides)} --max-nfr {limit} --html {page}"
    # The reader has left before anything is written.
    shell = f"({command}; echo $? > {tmp_path}/code) | true"
    ended = subprocess.run(["bash", "-c", shell], stderr=subprocess.PIPE, text=True, timeout=120)
    assert int((tmp_path / "code").read_text()) == code
    assert page.is_file() and not ended.stderr
    # Closed before the start, as services do.
    shell = f"{command}; echo $? > {tmp_path}/code"
    subprocess.run(["bash", "-c", f"({shell}) >&- 2>&-"], timeout=120)
    assert int((tmp_path / "code").read_text()) == code


@posix
def test_a_full_disk_is_said_and_what_was_there_stays(tmp_path, sides):
    with pytest.raises(SaveError, match="/dev/full"):
        write_text("/dev/full", "text")
    assert main(["compare", *sides, "--json", "/dev/full"]) == 2
    with open("/dev/full", "w") as full:
        assert run_program("compare", *sides, stdout=full, stderr=subprocess.DEVNULL).returncode == 2
    write_text(tmp_path / "file", "before")
    code = (
        "import resource, signal, sys; from muscle_hf.files import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_text(sys.argv[1], ['x' * 999] * 99)\n"
        "except SaveError: sys.exit(7)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "file")], timeout=60)
    assert ended.returncode == 7 and (tmp_path / "file").read_text() == "before"
    assert sorted(os.listdir(tmp_path)) == ["file", "new.jsonl", "old.jsonl"]


# ---- Inputs ----

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("read", [read_json, read_yaml, read_predictions])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_files_are_named_as_such(read, encoding, tmp_path):
    (tmp_path / "file.jsonl").write_text('{"id": 1}\n', encoding=encoding)
    with pytest.raises(MuscleError, match="UTF-16"):
        read(tmp_path / "file.jsonl")


def test_rows_in_utf16_are_read_by_its_mark(tmp_path):
    (tmp_path / "file.jsonl").write_text('{"id": 1}\n', encoding="utf-16")
    assert read_rows(tmp_path / "file.jsonl", "test") == [{"id": 1}]
    (tmp_path / "file.jsonl").write_text('{"id": 1}\n', encoding="utf-16-le")
    with pytest.raises(MuscleError):
        read_rows(tmp_path / "file.jsonl", "test")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv"])
def test_utf16_logs_are_read(suffix, tmp_path):
    rows = {"jsonl": '{"id": 1, "prediction": "é", "target": "é"}\n', "csv": "id,prediction,target\n1,é,é\n"}
    text = rows["jsonl" if suffix == "jsonl" else "csv"].replace(",", "\t" if suffix == "tsv" else ",")
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / f"{encoding}.{suffix}").write_text(text, encoding=encoding)
    document = compare(*(tmp_path / f"{encoding}.{suffix}" for encoding in ("utf-8", "utf-16")))
    assert document.tasks[0].items == 1
    assert document.tasks[0].accuracy_old.value == document.tasks[0].updates[0].accuracy.value == 1


@pytest.mark.parametrize("read", [read_json, read_yaml, read_predictions])
def test_json_that_is_too_deep_is_refused(read, tmp_path):
    (tmp_path / "file.jsonl").write_text('{"a": ' + DEEP + "}\n")
    with pytest.raises(MuscleError, match=r"file\.jsonl"):
        read(tmp_path / "file.jsonl")


@pytest.mark.parametrize("option", ["--noise", "--budget", "--baseline", None])
@pytest.mark.parametrize("content", ["", "{", DEEP, '{"a": ' + DEEP + "}", "\ufeff[1]", "\0\0\0"])
def test_no_broken_input_of_a_comparison_is_a_crash(option, content, sides, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text(content)
    words = [option, str(tmp_path / "bad.jsonl")] if option else [str(tmp_path / "bad.jsonl")]
    assert main(["compare", *sides, *words]) == 2
    assert "bad.jsonl" in capsys.readouterr().err


DAMAGED = {
    "x.jsonl.gz": gzip.compress(b'{"id": 1}' * 99, mtime=0)[:12] + b"damaged" * 9,
    "x.jsonl": '{"id": 1}'.encode("utf-16") + b"\xd8",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_archives_and_encodings_are_said(name, sides, tmp_path, capsys):
    (tmp_path / name).write_bytes(DAMAGED[name])
    assert main(["compare", sides[0], str(tmp_path / name)]) == 2
    assert name in capsys.readouterr().err


def test_a_hint_is_the_nearest_name_or_all_of_them():
    assert did_you_mean("max_nrf", ["max_nfr", "level"]) == "did you mean 'max_nfr'?"
    assert did_you_mean("qqq", ["max_nfr", "level"]) == "there are: level, max_nfr"
    assert did_you_mean("qqq", ["level"], "see --help") == "see --help"


def test_the_hash_of_plain_data_is_over_its_json_with_sorted_keys():
    expected = hashlib.sha256(b'{"a": ["\\u00e9"], "b": 1}').hexdigest()
    assert json_sha256({"b": 1, "a": ["é"]}) == expected
    assert json_sha256({"b": 1, "a": {"é"}}, default=list) == expected
