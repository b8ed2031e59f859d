"""Mutation testing: `python -m tests.mutants`, or `make mutants`; of changed functions, `make mutants-quick`.

mutmut changes one thing at a time in the losses, which the properties and the losses' tests must notice, and
in the oracles, which the oracles' own tests must. A change that no test notices survives. A survivor that
computes the same is recorded in `tests/defects/equivalent.toml` with the reason.

All mutants take hours. What became of those of a function is kept in `tests/mutants.json`: the next run tries
the functions that are new or have changed, and those that it did not come to.
"""

import ast
import contextlib
import functools
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
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
COPIED = ("verified_losses", "tests", "benchmarks", "pyproject.toml")
EXAMPLES = "8"
"""Cases of each property: few, as there are thousands of mutants."""
NO_LOSSES = ("verified_losses/certified.py", "verified_losses/__main__.py")
"""Source files of the package that compute no loss."""
RECORD = Path(__file__).with_name("mutants.json")
"""What became of the mutants of each function: digest, date, counts, and what survives."""
JSON = dict[str, Any]
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


def prepare(target: Target, folder: Path) -> None:
    """Lay out what mutmut works on."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in COPIED:
        source, copy = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    for path in (folder / target.files).glob("*.py"):
        path.write_text(undecorated(path.read_text()))
    settings = {
        "source_paths": ["verified_losses"],
        "also_copy": ["benchmarks"],
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
        started = []
        with contextlib.suppress(psutil.NoSuchProcess):  # Ctrl-C has ended it
            started = psutil.Process(running.pid).children(recursive=True)
        running.kill()
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        running.wait()
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


@dataclass(frozen=True)
class Function:
    """A function that is mutated."""

    package: str
    module: str
    name: str
    """In its module, with its class."""
    text: str
    """Which its layout does not change."""

    @property
    def digest(self) -> str:
        """What it is known by."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @property
    def pattern(self) -> str:
        """Of all its mutants, as mutmut names them."""
        owner, _, own = self.name.rpartition(".")
        return f"{self.module}." + (f"xǁ{owner}ǁ{own}" if owner else f"x_{own}") + "__mutmut_*"


@functools.cache
def every() -> dict[str, Function]:
    """Return all functions that are mutated, by their names with their modules."""
    found = {}
    for target in TARGETS:
        for path in sorted((ROOT / target.files).glob("*.py")):
            if f"{target.files}/{path.name}" not in NO_LOSSES:
                module = module_of(target, path)
                for name, text in functions(path.read_text()).items():
                    found[f"{module}.{name}"] = Function(target.package, module, name, text)
    return found


def module_of(target: Target, path: Path) -> str:
    """Return the name of a file's module."""
    return target.package if path.stem == "__init__" else f"{target.package}.{path.stem}"


def known(record: Path = RECORD) -> dict[str, JSON]:
    """Return what became of the mutants of every function that is as it was then."""
    now = {name: one.digest for name, one in every().items()}
    kept: dict[str, JSON] = json.loads(record.read_text()) if record.exists() else {}
    return {name: one for name, one in kept.items() if one["digest"] == now.get(name)}


def tried(found: list[Mutant], package: str) -> dict[str, JSON]:
    """Return what became of the mutants of every function of a package whose mutants were all tried."""
    if all(mutant.status == UNTRIED for mutant in found):
        return {}  # a run may end before all mutants are made
    now, date = every(), stamp()["date"]
    of_function: dict[str, list[Mutant]] = {name: [] for name, one in now.items() if one.package == package}
    for mutant in found:
        of_function[mutant.function].append(mutant)
    return {
        name: {
            "digest": now[name].digest, "date": date,
            "killed": sum(one.status == "killed" for one in own),
            "equivalent": sum(one.status == "equivalent" for one in own),
            "survived": [changes(one.diff) for one in own if one.status not in ("killed", "equivalent")],
        }
        for name, own in of_function.items()
        if all(one.status != UNTRIED for one in own)
    }  # fmt: skip


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
    """Return the names of the functions that differ from their form at a commit.

    Raises:
        ValueError: there is no such commit.
    """
    commit = ["git", "rev-parse", "--quiet", "--verify", f"{since}^{{commit}}"]
    if subprocess.run(commit, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode:
        raise ValueError(f"since: expected a commit, got {since!r}")
    before: dict[str, str] = {}
    for target in TARGETS:
        for path in sorted((ROOT / target.files).glob("*.py")):
            relative = path.resolve().relative_to(ROOT)  # git knows files, not links to their folder
            shown = subprocess.run(
                ["git", "show", f"{since}:{relative}"], cwd=ROOT, capture_output=True, text=True, check=False
            )
            own = functions(shown.stdout if shown.returncode == 0 else "")
            before |= {f"{module_of(target, path)}.{name}": text for name, text in own.items()}
    return [name for name, one in every().items() if before.get(name) != one.text]


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


def judged(mutants: list[Mutant], known: list[Equivalent]) -> list[Mutant]:
    """Mark the survivors that are known to be equivalent."""
    result = []
    for mutant in mutants:
        survived = mutant.status not in ("killed", UNTRIED)
        if survived and known_as(mutant.function, mutant.diff, known):
            mutant = replace(mutant, status="equivalent")
        result.append(mutant)
    return result


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
    again: bool = False,
    max_time: str = "",
    jobs: int = 2,
    out: Path = Path("build/mutants"),
) -> int:
    """Mutate the functions of losses and oracles that are not known, and print what survives.

    Exit status: 0 every mutant is killed or equivalent, 1 some are not, 2 an argument is wrong, or a test
    fails without a mutant. All mutants take hours. Ctrl-C ends a run; what it has found is kept.

    Parameters
    ----------
    only
        Patterns of functions' names, such as "verified_losses.oracles.clip.*": mutate those, known or not.
    since
        A commit: mutate the functions that have changed since, known or not.
    again
        Mutate all functions, known or not.
    max_time
        When to end, such as 90m; else when all are tried.
    jobs
        How many mutants to try at a time.
    out
        Where to work.
    """
    started = time.monotonic()
    console = Console(emoji=False, soft_wrap=True, highlight=False)
    listed = every()
    before = known()
    try:
        if since:
            chosen = changed_functions(since)
        elif only:
            chosen = [name for name in listed if any(fnmatch(name, pattern) for pattern in only)]
        else:
            chosen = [name for name in listed if again or name not in before]
        until = started + read_seconds(max_time) if max_time else math.inf
    except (ValueError, Unusable) as error:
        console.print(str(error), markup=False)
        return 2
    found: list[Mutant] = []
    for target in TARGETS:
        patterns = [listed[name].pattern for name in chosen if listed[name].package == target.package]
        if not patterns or time.monotonic() >= until:
            continue
        folder = out.absolute() / target.package
        prepare(target, folder)
        if mutate(folder, patterns, jobs, until):
            return 2
        seen = judged(list(read(folder, target)), equivalents())
        found += seen
        before |= tried(seen, target.package)
        RECORD.write_text(json.dumps(dict(sorted(before.items())), indent=1) + "\n")
    shown = [one for one in found if one.status not in ("killed", "equivalent", UNTRIED)]
    for mutant in shown:
        console.print(f"\n{mutant.status.upper()} {mutant.function}\n{changes(mutant.diff)}", markup=False)
    counts = Counter(one.status for one in found if one.status != UNTRIED)
    summary = ", ".join(f"{count} {status}" for status, count in counts.most_common()) or "none tried"
    minutes = (time.monotonic() - started) / 60
    console.print(f"\n{counts.total()} mutants: {summary}, in {minutes:.0f} minutes")
    console.print(
        f"{len(before)} of {len(listed)} functions are known: {RECORD.name} says what of their mutants"
    )
    return int(bool(shown))


if __name__ == "__main__":
    sys.exit(app())
