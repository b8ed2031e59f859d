"""The GitHub action, the pre-commit hook and annotations: their commands are read from files, and run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from verified_losses.properties.ask import annotate  # noqa: F401  # which adds its command
from verified_losses.properties.ask.cli import main
from verified_losses.properties.show import certificate as records
from verified_losses.properties.show.annotations import defined, render, source_of
from verified_losses.properties.show.certificate import Asked, Certificate
from verified_losses.properties.subjects import Subject, Target
from verified_losses.properties.verify.certifier import Finding, checks
from verified_losses.properties.verify.known import Known
from verified_losses.properties.worlds.specs import parse

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
SECONDS = 240
WRONG = """
import torch
from torch.nn import functional as F


class Loss:
    def __call__(self, image_features, text_features, logit_scale):
        logits = logit_scale * image_features @ text_features.T
        return F.cross_entropy(logits, torch.arange(len(logits)))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a loss that forgets one direction, and the command on its path."""
    (tmp_path / "mine.py").write_text(WRONG)
    command = tmp_path / "bin" / "verified-losses"
    command.parent.mkdir()
    run = shlex.join([sys.executable, "-m", "verified_losses.properties"])
    command.write_text(f'#!/bin/sh\nexec {run} "$@"\n')
    command.chmod(0o755)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    return tmp_path


def _run(project: Path, script: str, **given: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, **given, "OMP_NUM_THREADS": "1",
        "PATH": f"{project / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }  # fmt: skip
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def _step(name: str) -> dict[str, Any]:
    (step,) = [one for one in ACTION["runs"]["steps"] if one.get("id") == name]
    return dict(step)


def test_the_action_s_steps_give_what_its_inputs_name() -> None:
    named = set(ACTION["inputs"])
    text = (ROOT / "action.yml").read_text()
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == named
    for step in ACTION["runs"]["steps"]:
        assert ("uses" in step) != ("run" in step)
        if "run" in step:  # an input is given by the environment: it cannot add commands
            assert "${{" not in step["run"]
            assert step["shell"] == "bash"
            used = set(re.findall(r"\$\{?([A-Z][A-Z_]+)", step["run"])) - {"GITHUB_OUTPUT", "OMP_NUM_THREADS"}
            assert used <= step["env"].keys()


TAKEN = {
    "actions/setup-python": {"python-version"},
    "actions/cache/restore": {"path", "key", "restore-keys"},
    "actions/cache/save": {"path", "key"},
    "actions/upload-artifact": {"name", "path", "if-no-files-found"},
}
"""The inputs that we give, which the action.yml of each has at the commit that is named."""


def test_actions_of_others_are_pinned_and_have_the_inputs_that_they_are_given() -> None:
    used = [step for step in ACTION["runs"]["steps"] if "uses" in step]
    for step in used:
        name, _, commit = step["uses"].partition("@")
        assert re.fullmatch(r"[0-9a-f]{40}", commit), name
        assert step["with"].keys() == TAKEN[name]
    assert {step["uses"].partition("@")[0] for step in used} == TAKEN.keys()
    restored, saved = (step["with"] for step in used if "/cache/" in step["uses"])
    assert (restored["path"], restored["key"]) == (saved["path"], saved["key"])
    for prefix in restored["restore-keys"].split("\n"):
        assert saved["key"].startswith(prefix)


def test_cases_that_failed_are_kept_though_the_job_fails() -> None:
    (save,) = [step for step in ACTION["runs"]["steps"] if "/cache/save" in step.get("uses", "")]
    assert save["if"] == "always()"


def test_without_a_target_what_the_project_lists_is_certified(project: Path) -> None:
    (project / "bin" / "verified-losses").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\" > arguments\nexit 2\n")
    done = _run(project, _step("certify")["run"], TARGET="", CONTRACT="", OPTIONS="", GITHUB_OUTPUT="output")
    assert done.returncode == 2, done.stderr
    assert (project / "arguments").read_text().splitlines()[:2] == ["certify", "--json"]


OPTIONS = "--world 1 --max-examples 10 --dtype float64 --only 'terms equal the oracle'"
GIVEN = {"TARGET": "mine.py:Loss", "CONTRACT": "clip", "OPTIONS": OPTIONS}


@pytest.mark.parametrize(
    ("status", "verdict", "said"),
    [(1, "falsified", "annotated"), (3, "incomplete", "annotated"), (0, "holds", "annotated"), (2, "", "")],
)
def test_the_action_hands_on_what_the_command_says(
    project: Path, status: int, verdict: str, said: str
) -> None:
    record = '{"verdict": "' + verdict + '"}'
    (project / "bin" / "verified-losses").write_text(f"""#!/bin/sh
if [ "$1" = annotate ]; then echo annotated "$2"; exit; fi
printf '%s\\n' "$@" > arguments
if [ {status} != 2 ]; then mkdir -p build/certified; echo '{record}' > build/certified/certificate.json; fi
exit {status}
""")
    output = project / "output"
    done = _run(project, _step("certify")["run"], **GIVEN, GITHUB_OUTPUT=str(output))
    assert done.returncode == status, done.stderr
    assert done.stdout == (f"{said} build/certified/certificate.json\n" if said else "")
    assert (output.read_text() if said else "") == (f"verdict={verdict}\n" if said else "")
    given = (project / "arguments").read_text().splitlines()
    assert given[:4] == ["certify", "mine.py:Loss", "--as", "clip"]
    assert given[-2:] == ["--only", "terms equal the oracle"]
    files = [given[given.index(name) + 1] for name in ("--json", "--html", "--junit", "--counterexamples")]
    (upload,) = [one for one in ACTION["runs"]["steps"] if "upload-artifact" in one.get("uses", "")]
    assert upload["with"]["path"].split() == ["build/certified", "!build/certified/examples"]
    assert {str(Path(file).parent) for file in files} == {"build/certified"}


@pytest.mark.skipif("PACKAGES" not in os.environ, reason="`make packages` runs it")
def test_the_action_certifies_and_annotates(project: Path) -> None:
    output = project / "output"
    done = _run(project, _step("certify")["run"], **GIVEN, GITHUB_OUTPUT=str(output))
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("::")]
    where = "file=mine.py,line=6,title=Loss%3A terms equal the oracle does not hold in world single"
    assert line.startswith(f"::error {where}::Falsified: rank 0, contrastive_loss: expected ")
    assert output.read_text() == "verdict=falsified\n"
    written = {file.name for file in (project / "build" / "certified").iterdir()}
    assert written >= {"certificate.html", "certificate.json", "counterexamples", "junit.xml"}


def test_the_action_installs_what_it_is_given(project: Path) -> None:
    python = project / "bin" / "python"
    python.unlink()
    python.write_text(f'#!/bin/sh\n[ "$1" = -m ] && echo "$@" || exec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    given = {
        "SOURCE": "/action",
        "TORCH": "torch==2.13.0",
        "INDEX": "https://index",
        "REQUIREMENTS": ". 'a b'",
    }
    said = _run(project, _step("install")["run"], **given).stdout.splitlines()
    assert said == [
        "-m pip install --quiet torch==2.13.0 --index-url https://index",
        "-m pip install --quiet /action[verify]",
        "-m pip install --quiet . a b",
    ]
    none = _run(project, _step("install")["run"], SOURCE="/action", TORCH="", INDEX="", REQUIREMENTS="")
    assert none.stdout.splitlines() == ["-m pip install --quiet /action[verify]"]


def test_the_hook_runs_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert (hook["language"], hook["pass_filenames"], hook["id"]) == ("system", False, "certify-loss")
    program, *given = shlex.split(hook["entry"])
    assert program == "verified-losses"
    with pytest.raises(SystemExit, match="2"):
        main([*given, "mine.py:Loss", "--as", "clap"])
    assert "--as: expected" in capsys.readouterr().err


def _certificate(target: str, *found: Finding, verdict: str = "falsified") -> Certificate:
    subject = Subject(target)
    one = records.certificate(
        subject, "clip", found, [], Asked(0, 2, "1"), Known(), ["CUDA: none"], True, drawn={}
    )
    return msgspec.structs.replace(one, verdict=verdict)


def test_a_line_that_raised_is_annotated_and_text_cannot_end_a_command(tmp_path: Path) -> None:
    file = tmp_path / "a,b.py"
    file.write_text(WRONG)
    check, other, *_ = checks({"Loss": ("clip", Subject(f"{file}:Loss"))}, parse("1"))
    reason = f'Error: 100%\n  File "{file}", line 8, in x\n    y\n  File "/else.py", line 3, in z\nboom'
    limit = Finding(other, 0, "limit", reason="unequal rows\n  File", limit="unequal rows")
    one = _certificate(
        f"{file}:Loss", Finding(check, 0, "falsified", reason=reason), limit, verdict="incomplete"
    )
    first, second, third = render(one, tmp_path)
    assert first.startswith("::error file=a%2Cb.py,line=8,title=Loss%3A ")
    assert "::Error: 100%25%0A" in first
    assert second.startswith("::notice file=a%2Cb.py,line=6,title=Loss%3A limit%3A unequal rows::")
    assert second.endswith("::unequal rows")
    assert third.startswith("::warning title=")
    assert third.endswith("something did not run::CUDA: none")


def test_a_module_is_found_without_an_import(tmp_path: Path) -> None:
    for name in ("src/package/losses.py", "other/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("raise SystemExit\n\ndef loss(): ...\n")
    found = source_of(Target("package.losses", "loss"), tmp_path)
    assert found == tmp_path / "src" / "package" / "losses.py"
    assert defined(found, "loss") == 3
    assert defined(found, "Another") == 1
    assert source_of(Target("other", "loss"), tmp_path) == tmp_path / "other" / "__init__.py"
    assert source_of(Target("torch", "nn"), tmp_path) is None
    assert source_of(Target("/etc/none.py", "nn"), tmp_path) is None
    found.write_text("def (")
    assert defined(found, "loss") == 1


@pytest.mark.parametrize(
    ("text", "said"), [(None, "PATH: cannot read "), ("{", "PATH: expected a certificate")]
)
def test_what_is_no_certificate_is_named(
    tmp_path: Path, text: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "certificate.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        main(["annotate", str(file)])
    assert said in capsys.readouterr().err
