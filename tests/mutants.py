"""Mutation testing: `python -m tests.mutants`, or `make mutants`; of changed functions, `make mutants-quick`.

mutmut changes one thing at a time in the losses, which the properties and the losses' tests must notice, and
in the oracles, which the oracles' own tests must. A change that no test notices survives. A survivor that
computes the same is recorded in `tests/defects/equivalent.toml` with the reason.
"""

import ast
import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import psutil
from cyclopts import App, Parameter
from rich.console import Console

from verified_losses.properties.show.certificate import stamp
from verified_losses.properties.verify.arguments import Unusable, read_seconds

ROOT = Path(__file__).parents[1]
EQUIVALENT = Path(__file__).parent / "defects" / "equivalent.toml"
COPIED = ("verified_losses", "tests", "pyproject.toml")
EXAMPLES = "8"
"""Cases of each property: few, as there are thousands of mutants."""
NO_LOSSES = ("verified_losses/certified.py", "verified_losses/__main__.py")
"""Source files of the package that compute no loss."""
KILLED = 1
"""The exit status of pytest where a test fails."""
UNTRIED = "not checked"
"""What mutmut says of a mutant that it has not come to."""
CRASHED = ("segfault", "suspicious")
"""What mutmut says where a signal ended the tests: memory beyond a tile, say, was written to."""


@dataclass(frozen=True)
class Target:
    """A package to mutate, without those inside it, and the tests that must notice."""

    package: str
    tests: tuple[str, ...]
    """The middles of their files' names."""
    chosen: str = ""
    """Of these tests, as pytest's -k takes it."""
    arguments: tuple[str, ...] = ()

    @property
    def files(self) -> str:
        """Where its files are, from the top."""
        return self.package.replace(".", "/")


TARGETS = (
    Target(
        "verified_losses",
        (
            "arguments",
            "losses",
            "lost",
            "memory",
            "captions",
            "accumulation",
            "streamed",
            "kernels",
            "ranks",
            "agreement",
            "transport",
            "flags",
            "communication",
            "certify",
        ),
        # torch.compile does not see through what mutmut puts around functions
        "not processes and not compiled and not one_graph and not _open_clip "
        # these take another process, or change this one for good
        "and not compile_for and not by_kernels and not left_out",
        ("-p", "tests.in_process"),
    ),
    Target(
        "verified_losses.oracles",
        ("oracles", "kinds", "monte_carlo", "rounding", "hyper_dual", "steps", "traced", "matmul"),
        # these certify losses, which takes long, and shows no more of an oracle
        "not right_variants and not defects_of and not certified and not verified and not inspect",
    ),
    Target("verified_losses.oracles.bounds", ("rounding", "steps", "traced", "matmul")),
)


@dataclass(frozen=True)
class Mutant:
    """One change, and what became of it."""

    name: str
    """As mutmut names it."""
    function: str
    status: str
    diff: str
    reason: str = ""
    """Why it is equivalent."""

    @property
    def file(self) -> str:
        """Where it is, from the top."""
        return self.name.rpartition(".")[0].replace(".", "/") + ".py"


def prepare(target: Target, folder: Path, resume: bool) -> None:
    """Lay out what mutmut works on, and, to resume, leave it what it has killed before."""
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    # which tests reach what may have changed
    (folder / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)
    for record in folder.glob("mutants/**/*.meta"):
        found = json.loads(record.read_text())
        codes = found["exit_code_by_key"]
        found["exit_code_by_key"] = {name: code if code == KILLED else None for name, code in codes.items()}
        record.write_text(json.dumps(found))
    for name in COPIED:
        source, copy = ROOT / name, folder / name
        if source.is_dir():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    for path in (folder / target.files).glob("*.py"):
        path.write_text(undecorated(path.read_text()))
    settings = {
        "source_paths": ["verified_losses"],
        "only_mutate": [f"{target.files}/*"],
        "do_not_mutate": [f"{target.files}/*/*", *NO_LOSSES],
        "pytest_add_cli_args_test_selection": [f"tests/test_{name}.py" for name in target.tests],
        "pytest_add_cli_args": ["-p", "tests.killers", *target.arguments, "-k", target.chosen],
        # mutants start from a process that has imported everything, and run nothing
        "process_isolation": "forkserver",
    }
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items()]
    with (folder / "pyproject.toml").open("a") as project:
        project.write("\n[tool.mutmut]\n" + "".join(lines))


def undecorated(source: str) -> str:
    """Return a module whose steps are marked after their functions: mutmut leaves out what is decorated."""
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        marks = node.decorator_list if isinstance(node, ast.FunctionDef) else []
        if len(marks) == 1 and ast.unparse(marks[0]).startswith("step("):
            lines.insert(node.end_lineno or 0, f"\n\n{node.name} = {ast.unparse(marks[0])}({node.name})")
            del lines[marks[0].lineno - 1]
    return "\n".join(lines) + "\n"


def mutate(folder: Path, patterns: list[str], jobs: int, until: float) -> int:
    """Run mutmut until a time of the monotonic clock, or Ctrl-C; return its exit status."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "VERIFY_EXAMPLES": EXAMPLES,
        "HYPOTHESIS_PROFILE": "gate",
    }
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(jobs), *patterns]
    running = subprocess.Popen(command, cwd=folder, env=environment)
    try:
        return running.wait(None if until == math.inf else max(until - time.monotonic(), 0))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        # it notes each mutant as soon as it is known
        processes = [running, *psutil.Process(running.pid).children(recursive=True)]
        for process in processes:
            process.kill()
        return 0


def read(folder: Path, target: Target) -> Iterator[Mutant]:
    """Yield what became of every mutant."""
    with contextlib.chdir(folder):
        from mutmut.mutation.data import SourceFileMutationData
        from mutmut.stats import status_by_exit_code

        for path in sorted(Path(target.files).glob("*.py")):
            data = SourceFileMutationData(path=path)
            data.load()
            for name, code in data.exit_code_by_key.items():
                status = status_by_exit_code[code]
                status = "killed" if status in CRASHED else status
                diff = "" if status in ("killed", UNTRIED) else diff_of(name)
                yield Mutant(name, function_of(name), status, diff)


def files_of(found: list[Mutant], tried: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return the digest of each file that has functions, and what became of its mutants.

    Args:
        found: the mutants.
        tried: the packages that were mutated; files of others count none.
    """
    counts: dict[str, Counter[str]] = {}
    for mutant in found:
        counts.setdefault(mutant.file, Counter())[mutant.status] += 1
    return {
        name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "counts": counts.get(name, {})}
        for target in TARGETS
        for path in sorted((ROOT / target.files).glob("*.py"))
        if (name := f"{target.files}/{path.name}") in counts
        or (target.package not in tried and name not in NO_LOSSES and functions(path.read_text()))
    }


def function_of(mutant: str) -> str:
    """Return the function of a mutant's name, with its module and its class."""
    from mutmut.utils.format_utils import orig_function_and_class_names_from_key

    function, owner = orig_function_and_class_names_from_key(mutant)
    return ".".join(filter(None, [mutant.rpartition(".")[0], owner, function]))


def diff_of(mutant: str) -> str:
    """Return what a mutant changes, in the folder that mutmut works in."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    path = Path(mutant.rpartition(".")[0].replace(".", "/")).with_suffix(".py")
    return "\n".join(get_diff_for_mutant(mutant, path=path).splitlines()[2:])


def changed_functions(since: str) -> list[str]:
    """Return patterns of the mutants of every function that differs from its form at a commit.

    Raises:
        ValueError: there is no such commit.
    """
    commit = ["git", "rev-parse", "--quiet", "--verify", f"{since}^{{commit}}"]
    if subprocess.run(commit, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode:
        raise ValueError(f"since: expected a commit, got {since!r}")
    patterns = []
    for target in TARGETS:
        for path in sorted((ROOT / target.files).glob("*.py")):
            relative = path.resolve().relative_to(ROOT)  # git knows files, not links to their folder
            if str(relative) in NO_LOSSES:
                continue
            shown = subprocess.run(
                ["git", "show", f"{since}:{relative}"], cwd=ROOT, capture_output=True, text=True, check=False
            )
            before = functions(shown.stdout if shown.returncode == 0 else "")
            for name, text in functions(path.read_text()).items():
                if before.get(name) != text:
                    owner, _, function = name.rpartition(".")
                    key = f"xǁ{owner}ǁ{function}" if owner else f"x_{function}"
                    patterns.append(f"{target.package}.{path.stem}.{key}__mutmut_*")
    return patterns


def functions(source: str) -> dict[str, str]:
    """Return every function and method by its qualified name, as text that layout does not change."""
    found = {}
    for node in ast.parse(source).body:
        owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for inner in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(inner, ast.FunctionDef):
                found[owner + inner.name] = ast.dump(inner)
    return found


def changes(diff: str) -> str:
    """Return the lines of a diff that differ, without their indentation: what a mutant is known by."""
    lines = [line for line in diff.splitlines() if line.startswith(("+", "-"))]
    return "\n".join(line[0] + " " + line[1:].strip() for line in lines)


@dataclass(frozen=True)
class Equivalent:
    """Mutants that compute the same, and why."""

    function: str
    """As `fnmatch` matches names."""
    change: re.Pattern[str]
    """All of what `changes` returns."""
    reason: str

    def __str__(self) -> str:
        return f"{self.function}\n{self.change.pattern}"


def equivalents() -> list[Equivalent]:
    """Return what is known to be equivalent."""
    entries = tomllib.loads(EQUIVALENT.read_text())
    literal = [
        Equivalent(one["function"], re.compile(re.escape(change.strip())), one["reason"])
        for one in entries.get("mutant", [])
        for change in one["changes"]
    ]
    kinds = [
        Equivalent(one["function"], re.compile(one["change"]), one["reason"])
        for one in entries.get("kind", [])
    ]
    return literal + kinds


def judged(mutants: list[Mutant], known: list[Equivalent]) -> tuple[list[Mutant], list[Equivalent]]:
    """Mark the survivors that are known to be equivalent; return all, and unmatched entries."""
    matched = set()
    result = []
    for mutant in mutants:
        survived = mutant.status not in ("killed", UNTRIED)
        if survived and (one := known_as(mutant.function, mutant.diff, known)):
            matched.add(one)
            mutant = replace(mutant, status="equivalent", reason=one.reason)
        result.append(mutant)
    return result, [one for one in known if one not in matched]


def known_as(function: str, diff: str, known: list[Equivalent]) -> Equivalent | None:
    """Return what a mutant is known to be equivalent by, if it is."""
    change = changes(diff)
    fitting = (one for one in known if fnmatch(function, one.function) and one.change.fullmatch(change))
    return next(fitting, None)


app = App(help=__doc__)


@app.default
def mutants(
    *,
    only: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    since: str = "",
    resume: bool = False,
    max_time: str = "",
    jobs: int = 2,
    out: Path = Path("build/mutants"),
) -> int:
    """Mutate the losses and the oracles, and print what survives.

    Exit status: 0 every mutant is killed or equivalent, 1 some are not, 2 an argument is wrong, or a test
    fails without a mutant. All mutants take hours. Ctrl-C ends a run, and what it has found is written.

    Parameters
    ----------
    only
        Patterns of mutants' names: package, file, function, such as "verified_losses.oracles.clip.*".
    since
        A commit: mutate the functions alone that have changed since.
    resume
        Try those alone that are new, or were not killed the last time.
    max_time
        When to end, such as 90m; else when all are tried.
    jobs
        How many mutants to try at a time.
    out
        Where to work, and to write `mutants.json`: the counts of each file, and the survivors.
    """
    started = time.monotonic()
    console = Console(emoji=False, soft_wrap=True, highlight=False)
    try:
        patterns = [*(only or []), *(changed_functions(since) if since else [])]
        until = started + read_seconds(max_time) if max_time else math.inf
    except (ValueError, Unusable) as error:
        console.print(str(error), markup=False)
        return 2
    complete = not only and not since
    if not complete and not patterns:
        console.print(f"no function of the losses or oracles has changed since {since}")
        return 0
    found: list[Mutant] = []
    mutated = []
    stamped = stamp()
    for target in TARGETS:
        chosen = [pattern for pattern in patterns if pattern.rsplit(".", 2)[0] == target.package]
        if (chosen or complete) and time.monotonic() < until:
            mutated.append(target.package)
            folder = out.absolute() / target.package
            prepare(target, folder, resume)
            if mutate(folder, chosen, jobs, until):
                return 2
            found += read(folder, target)
    found, unmatched = judged(found, equivalents())
    for entry in unmatched if complete and len(mutated) == len(TARGETS) else []:
        console.print(f"equivalent.toml: no survivor is {entry}", markup=False)
    tried = [mutant for mutant in found if mutant.status != UNTRIED]
    left = [mutant for mutant in tried if mutant.status not in ("killed", "equivalent")]
    for mutant in left:
        console.print(f"\n{mutant.status.upper()} {mutant.function}\n{changes(mutant.diff)}", markup=False)
    counts = Counter(mutant.status for mutant in tried)
    judgeable = len(tried) - counts["equivalent"]
    score = counts["killed"] / judgeable if judgeable else 1.0
    minutes = (time.monotonic() - started) / 60
    summary = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    console.print(f"\n{len(tried)} mutants: {summary}; score {score:.1%} in {minutes:.0f} minutes")
    report = {"stamp": stamped, "minutes": minutes, "files": files_of(found, mutated)}
    report["left"] = [asdict(one) for one in left]
    (out / "mutants.json").write_text(json.dumps(report, indent=1) + "\n")
    return int(bool(left))


if __name__ == "__main__":
    sys.exit(app())
