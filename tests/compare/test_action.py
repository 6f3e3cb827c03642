"""The GitHub Action: its steps run in a clean shell, as on GitHub, with a stand-in for ``gh`` or for GitHub itself."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import paths
import pytest
import yaml
from compare_files import choice_predictions, flipping, write

ROOT = paths.ROOT
FOLDER = ROOT / ".github" / "actions" / "compare"
ACTION = yaml.safe_load((FOLDER / "action.yml").read_text(encoding="utf-8"))
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}


def filled(text: str, known: dict[str, str]) -> str:
    """A value of the action with its expressions replaced."""
    return re.sub(r"\$\{\{ (.*?) \}\}", lambda match: known[match[1]], text)


@pytest.fixture
def job(tmp_path):
    """Runs steps of the action; returns the last one's exit code and what it printed."""
    programs = tmp_path / "bin"
    programs.mkdir()
    commands = {
        "muscle-hf": f'exec "{sys.executable}" -m muscle_hf.cli.main "$@"',
        "python": f'exec "{sys.executable}" "$@"',
        # Remembers what it is asked, and knows a comment if the test left its number.
        "gh": f'printf "%s\\n" "$@" "" >> "{tmp_path}/gh.txt"\n'
        f'case "$*" in *--jq*) cat "{tmp_path}/known" || true ;; esac',
    }
    for name, line in commands.items():
        (programs / name).write_text(f"#!/bin/bash\n{line}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    places = {name: str(tmp_path / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    outputs = tmp_path / "GITHUB_OUTPUT"

    def run(*names: str, settings: dict[str, str] | None = None, **inputs: str) -> tuple[int, str]:
        outputs.write_text("", encoding="utf-8")
        for name in names:
            step = STEPS[name]
            done = dict(line.split("=", 1) for line in outputs.read_text(encoding="utf-8").splitlines())
            known = {f"inputs.{key}": str(spec.get("default", "")) for key, spec in ACTION["inputs"].items()}
            known |= {f"inputs.{key.replace('_', '-')}": value for key, value in inputs.items()}
            known |= {f"steps.compare.outputs.{key}": value for key, value in done.items()}
            known |= {"github.event.pull_request.number": "7"}
            env = {key: filled(text, known) for key, text in step["env"].items()}
            clean = {
                "PATH": f"{programs}:/usr/bin:/bin",
                "PYTHONPATH": str(ROOT),
                "RUNNER_TEMP": str(tmp_path),
                "GITHUB_REPOSITORY": "team/product",
                "GITHUB_RUN_ID": "5",
                "GITHUB_SERVER_URL": "https://example.org",
                "HOME": str(tmp_path),
            }
            result = subprocess.run(
                [shutil.which("bash"), "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
                cwd=tmp_path,
                env={**clean, **places, **env, **(settings or {})},
                capture_output=True,
                text=True,
            )
            if result.returncode:
                break
        return result.returncode, result.stdout + result.stderr

    return run


def report(tmp_path: Path) -> Path:
    (folder,) = (Path(path) for path in tmp_path.glob("model-update.*"))
    return folder


@pytest.mark.parametrize(
    ("flips", "inputs", "code"),
    [
        (1, {"args": "--max-nfr 5%"}, 0),
        (60, {"args": "--max-nfr 5%"}, 1),
        (14, {"args": "--max-nfr 5%"}, 3),
        (14, {"args": "--max-nfr 5%", "too_little_data": "warn"}, 0),
    ],
)
def test_the_job_ends_as_the_gate_says(job, tmp_path, flips, inputs, code):
    old, new = flipping(400, flips)
    write(tmp_path / "the old.jsonl", old)
    write(tmp_path / "new.jsonl", new)
    assert job("Compare", "Decide", old="the old.jsonl", new="new.jsonl", **inputs)[0] == code
    assert {path.name for path in report(tmp_path).iterdir()} == {"report.html", "comment.md", "result.json"}
    assert "Model update" in (tmp_path / "GITHUB_STEP_SUMMARY").read_text(encoding="utf-8")


def test_candidates_controls_and_quoted_arguments(job, tmp_path):
    old, new = flipping(400, 60)
    for name, rows in {"old": old, "new": new, "a b": old, "control": new}.items():
        write(tmp_path / f"{name}.jsonl", rows)
    (tmp_path / "budget.yaml").write_text("max_nfr: 5%\n", encoding="utf-8")
    sides = {"old": "old.jsonl", "new": "new.jsonl", "compat": "a b.jsonl\ncontrol.jsonl\n", "control": "control"}
    arguments = "--labels 'old,new,a b,control' --slices tone"
    code, _ = job("Compare", "Decide", budget="budget.yaml", args=arguments, **sides)
    assert code == 0 and "a b" in (report(tmp_path) / "comment.md").read_text(encoding="utf-8")


def test_inputs_are_never_run(job, tmp_path):
    write(tmp_path / "old.jsonl", choice_predictions(40, 0.9, 1))
    attack = f"$(touch {tmp_path}/hacked); `touch {tmp_path}/hacked`"
    assert job("Compare", old="old.jsonl", new=attack, args=f"--labels '{attack}'")[0] == 2
    assert not (tmp_path / "hacked").exists()
    assert not any("${{" in step.get("run", "") for step in STEPS.values())


def test_arguments_with_an_open_quote_are_not_left_out(job, tmp_path):
    for name, rows in zip(("old", "new"), flipping(400, 60), strict=True):
        write(tmp_path / f"{name}.jsonl", rows)
    assert job("Compare", "Decide", old="old.jsonl", new="new.jsonl", args="--max-nfr 5% --slices 'tone")[0] == 1


@pytest.mark.parametrize("known", [None, "77"])
def test_one_comment_is_kept_up_to_date(job, tmp_path, known):
    (tmp_path / "known").write_text(f"{known}\n" if known else "", encoding="utf-8")
    for name, rows in zip(("old", "new"), flipping(100, 3), strict=True):
        write(tmp_path / f"{name}.jsonl", rows)
    assert job("Compare", "Comment", old="old.jsonl", new="new.jsonl", github_token="t")[0] == 0
    last = (tmp_path / "gh.txt").read_text(encoding="utf-8").strip().split("\n\n")[-1].splitlines()
    target = f"repos/team/product/issues/comments/{known}" if known else "repos/team/product/issues/7/comments"
    assert target in last and ("PATCH" in last) == bool(known)
    body = (tmp_path / "body.md").read_text(encoding="utf-8")
    assert body.startswith("<!-- muscle-hf compare: model-update -->") and "actions/runs/5" in body


@pytest.fixture
def github():
    """A stand-in for GitHub's comments of one pull request: what it was asked, and its proxy's address."""
    asked: list[tuple[str, str, dict]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            comments = [{"id": 5, "body": "Fine."}]
            comments += [{"id": 77, **told} for method, _, told in asked if method == "POST"]
            asked.append((self.command, self.path.partition("?")[0], json.loads(body) if body else {}))
            data = json.dumps(comments if self.command == "GET" else {}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_PATCH = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield asked, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.mark.skipif(shutil.which("gh") is None, reason="gh is not installed")
def test_gh_itself_writes_and_rewrites_the_comment(job, github, tmp_path):
    asked, proxy = github
    (tmp_path / "bin" / "gh").unlink()
    # Of all hosts, gh speaks to this one without TLS.
    settings = {
        "GH_HOST": "github.localhost",
        "HTTP_PROXY": proxy,
        "PATH": f"{tmp_path}/bin:{Path(shutil.which('gh')).parent}:/usr/bin:/bin",
    }
    for flips in (3, 4):
        for name, rows in zip(("old", "new"), flipping(100, flips), strict=True):
            write(tmp_path / f"{name}.jsonl", rows)
        sides = {"old": "old.jsonl", "new": "new.jsonl"}
        assert job("Compare", "Comment", settings=settings, github_token="t", **sides)[0] == 0
    home = "http://api.github.localhost/repos/team/product/issues"
    assert [(method, path) for method, path, _ in asked if method != "GET"] == [
        ("POST", f"{home}/7/comments"),
        ("PATCH", f"{home}/comments/77"),
    ]
    bodies = [told["body"] for method, _, told in asked if method != "GET"]
    assert all(body.startswith("<!-- muscle-hf compare: model-update -->") for body in bodies)
    assert "3.0%" in bodies[0] and "4.0%" in bodies[1]


def test_the_page_tells_of_every_input():
    page = (ROOT / "docs" / "howto" / "gate-in-ci.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in ACTION["inputs"])
    workflow = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    used = next(step for step in workflow["jobs"]["compare"]["steps"] if "muscle-hf" in step.get("uses", ""))
    assert set(used["with"]) <= set(ACTION["inputs"]) and used["uses"].split("@")[0].endswith(
        str(FOLDER.relative_to(ROOT))
    )
