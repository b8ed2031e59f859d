"""A falsified check as one small Python file that anyone can run."""

import importlib
import os
import pprint
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from verified_losses.oracles.complex_step import Array

from ..cases import LAYOUTS, Case, has_layout, rounded
from ..contracts import Contract
from ..examples import Example, Mode, as_python
from ..laws import INFERENCE, Falsified, Law, Place
from ..laws.gradients import curves
from ..names import CONTRACTS
from ..reference import reference
from ..standalone import launch
from ..standalone.acts import called, derive_twice
from ..standalone.judges import (
    Judge,
    judge_form,
    judge_gradient,
    judge_nothing,
    judge_term,
    judge_words,
)
from ..subjects import Target
from ..verify.certifier import Check, Finding
from ..verify.fingerprints import fingerprint
from ..worlds import WorldError, table
from ..worlds.simulated import SimulationError
from .quoting import Quotes
from .text import write_whole

SECONDS = 60
"""How long a file lets its ranks run."""
MARK = "# verified-losses counterexample"
"""How a file begins."""
REASON = 3000
"""Characters of a reason that a file quotes."""
WIDTH = 100

ORACLES = [importlib.import_module(f"verified_losses.oracles.{name}") for name in CONTRACTS]
FORM = ("structure", "dtype and device", "altered inputs", "shape", "presence of the gradient")
"""What is wrong with an output other than its numbers."""
ALWAYS = {"import os", "import torch", "from torch import tensor"}
"""What the literals of a file need."""


@dataclass(frozen=True)
class Given:
    """What each rank is given in one call of the target."""

    name: str
    doc: str
    case: Case
    mode: Mode = "train"

    @property
    def cotangents(self) -> str:
        """The name of what backward gets, where that is not ones."""
        if self.case.cotangents == "ones":
            return ""
        return "COTANGENTS" if self.name == "inputs" else f"{self.name.upper()}_COTANGENTS"

    def called(self, rank: str = "rank", mode: Mode | None = None, **others: str) -> str:
        """Return the call as Python, of `target`."""
        arguments = ["target", rank, self.name, *filter(None, [self.cotangents])]
        if (mode or self.mode) != "train":
            arguments.append(f'mode="{mode or self.mode}"')
        if not self.case.output_dict:
            arguments.append("output_dict=False")
        if self.case.cotangent_strides in LAYOUTS:
            arguments.append(f"layout={self.case.cotangent_strides}")
        return f"called({', '.join([*arguments, *(f'{name}={value}' for name, value in others.items())])})"


def write(finding: Finding, folder: Path) -> Path:
    """Write a finding's file into a folder, which is made where there is none; return its path.

    Raises:
        OSError: the folder cannot be written.
    """
    check = finding.check
    words = re.sub(r"[^A-Za-z0-9_.]+", "-", f"{check.label}-{check.law.name}")
    path = folder / f"{words}-{fingerprint(finding)}.py"
    # whole: another certifier may write the same file, or a reader meet half of it
    write_whole(path, render(finding, path).encode())
    return path


def render(finding: Finding, path: Path) -> str:
    """Return the text of a finding's file, which is to lie at `path`."""
    check, example = finding.check, finding.smallest
    contract, law, row = check.contract, check.law, check.world.row
    assert example is not None
    judge, place = _judge(law, finding.error)
    by_law = judge is None or not example.is_plain
    judge = judge or judge_nothing
    case = law.prepare(example.case)
    given = [
        Given(f"before_{number}", "what each rank was given before", step.case, step.mode)
        for number, step in enumerate(example.steps, 1)
    ]
    inputs = Given("inputs", "what each rank is given", case)
    calls = [one.called() for one in given]
    calls += [inputs.called(mode=mode) for mode in _modes(law, judge, place)]
    given.append(inputs)
    oracle_case, alone = case, ""
    if law.other is not None:
        name, doc, change = law.other
        other = Given(name, doc, change(case))
        given.append(other)
        if other.case.world_size == case.world_size:
            calls.append(other.called())
        else:
            oracle_case = other.case
            arguments = _arguments(contract.constructor(other.case))
            alone = other.called("0", world_size="1", arguments=arguments)

    ranks = {one.name: _literals(contract, one) for one in given}
    layouts = {one.case.cotangent_strides for one in given}
    layouts |= {name for name in LAYOUTS if any(f"{name}(" in str(literals) for literals in ranks.values())}
    launched = case.world_size > 1 or judge is judge_nothing  # a crash must not take the verdict with it
    talk = row.talk if case.world_size > 1 else launch.ALONE
    names: dict[str, Callable[..., Any]] = {
        "build": contract.build_with,
        "call": contract.call_with,
        "judge": judge,
        "decide": launch.by_law if by_law else launch.by_judge,
        "start": talk.start,
        "gathered": talk.gathered,
    }
    quotes = Quotes()
    built = contract.build_with, contract.call_with
    acts = quotes.source(*(LAYOUTS[one] for one in LAYOUTS if one in layouts), *built, called, law.act)
    judged = quotes.source(judge)
    terms = contract.oracle_source(oracle_case)
    oracle = quotes.source(*_oracles(terms)) if "oracle" in quotes.given else ""
    run = quotes.source(launch.launched if launched else launch.verdict)
    run += "\n\n\n" + quotes.source(*(names[one] for one in names if one in quotes.given))

    constants = {
        one.cotangents: (_cotangents(contract, one.case), "what each rank's terms are multiplied with")
        for one in given
        if one.cotangents
    }
    if law.act is derive_twice:
        constants["MOVES"] = (_moves(contract, case), "how each rank's inputs move")
    known = _given(contract, place) | {"RANK_VARIABLE": (talk.rank_variable, "")}
    constants |= {name: known[name] for name in known if name in quotes.given - set(constants)}
    text = (
        _templates()
        .get_template("counterexample.py.jinja")
        .render(
            mark=f"{MARK} {fingerprint(finding)}",
            title=_title(check, case),
            reason=_quoted(finding.reason),
            file_name=path.name,
            world_size=case.world_size,
            over=row.over,
            imports=_imports(quotes.imports | ALWAYS | ({"import traceback"} if by_law else set())),
            target=_portable(check.subject.target),
            home=os.path.relpath(Path.cwd(), path.parent),
            arguments=_arguments(contract.constructor(case)),
            terms=contract.terms,
            seconds=SECONDS,
            constants=constants,
            given=given,
            ranks=ranks,
            act=law.act.__name__,
            calls=calls,
            moves=law.act is derive_twice,
            alone=alone,
            acts=acts,
            judged=judged,
            oracle=oracle,
            columns=[
                name
                for name in contract.inputs(case)[0]
                if re.search(rf"\b{name}\b", " ".join(terms.values()))
            ],
            oracle_terms=terms,
            law=_law(check, example) if by_law else None,
            run=run,
            names={name: value.__name__ for name, value in names.items() if name in quotes.given},
            main="launched()" if launched else "verdict(0)",
        )
    )
    return re.sub(r"\n{4,}", "\n\n\n", text)


def _judge(law: Law, error: Exception | None) -> tuple[Judge | None, Place]:
    """Return what judges that which was found wrong, and its place; None where only the law itself can."""
    if isinstance(error, WorldError):
        crashed = not isinstance(error, SimulationError) or error.finding == "raised"
        return judge_nothing if crashed else None, Place("")
    if isinstance(error, Falsified) and law.judge is judge_words:
        return judge_words, Place("")
    if not isinstance(error, Falsified) or error.place is None:
        return None, Place("")
    if error.place.kind in FORM:
        return (judge_form, error.place) if law.judge is None else (None, Place(""))
    return law.judge or (judge_gradient if error.place.kind == "gradient" else judge_term), error.place


def _modes(law: Law, judge: Judge, place: Place) -> tuple[Mode, ...]:
    """Return under which modes of torch the target is called: where it is wrong, or one after another."""
    if judge is judge_nothing:
        return law.modes
    return ("inference",) if place.note == INFERENCE else law.modes[:1]


def _oracles(terms: dict[str, str]) -> list[Callable[..., Any]]:
    """Return the functions of `oracles` that expressions name."""
    words = set(re.findall(r"\w+", " ".join(terms.values())))
    return [vars(module)[name] for module in ORACLES for name in sorted(words & vars(module).keys())]


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("verified_losses.properties.show"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["python"] = _python
    return environment


def _imports(statements: set[str]) -> str:
    """Return import statements, those from one module in one."""
    modules: dict[str, list[str]] = {}
    for statement in sorted(statements, key=lambda one: (one.startswith("from"), one)):
        origin, _, name = statement.partition(" import ")
        modules.setdefault(origin, []).append(name)
    shown = [
        f"{origin} import {', '.join(names)}".removesuffix(" import ") for origin, names in modules.items()
    ]
    outside = [line for line in shown if re.match(r"(import|from) (numpy|torch)\b", line)]
    return "\n".join([*(line for line in shown if line not in outside), "", *outside])


def _title(check: Check, case: Case) -> str:
    ranks = "one process" if case.world_size == 1 else f"{case.world_size} ranks"
    contract = check.contract
    convention = f", convention {case.convention}" if "convention" in contract.values else ""
    return f'{check.label}: "{check.law.name}" does not hold in {ranks} ({contract.name}{convention}).'


def _quoted(reason: str) -> str:
    """Return a reason as it may stand in a docstring."""
    for folder in (Path.cwd(), sys.prefix, sys.base_prefix):
        reason = reason.replace(f"{folder}/", "")  # a file says the same wherever it was written
    short = reason if len(reason) <= REASON else f"{reason[:REASON]}\n[...]"
    wrapped = [textwrap.fill(line, WIDTH) if len(line) > WIDTH else line for line in short.splitlines()]
    return "\n".join(wrapped).strip().replace("\\", "\\\\").replace('"""', "'''")


def _portable(target: str) -> str:
    """Return a target whose file lies below this folder by its path from here."""
    file = Target.of(target).file
    if file and file.resolve().is_relative_to(Path.cwd()):
        return str(Target(str(file.resolve().relative_to(Path.cwd())), Target.of(target).name))
    return target


def _arguments(arguments: dict[str, Any]) -> str:
    return f"{{{', '.join(f'{_python(name)}: {_python(value)}' for name, value in arguments.items())}}}"


def _python(value: Any) -> str:
    """Return a value as Python, in double quotes where it holds none."""
    text = pprint.pformat(value, width=WIDTH, compact=True)
    return text if '"' in text else text.replace("'", '"')


def _given(contract: Contract, place: Place) -> dict[str, tuple[Any, str]]:
    """Return the values, and comments, of what a judge may read."""
    why = "how far rounding may take a right implementation, derived for these inputs"
    allowed = place.expected if place.kind == "dtype and device" else [place.expected]
    along = None if place.along is None else _nested(place.along, "float64")
    return {
        "COTANGENTS": (None, "ones"),
        "WHERE": (str(place), ""),
        "RANK": (place.rank, ""),
        "KIND": (place.kind, ""),
        "NAME": (place.name, ""),
        "INDEX": (place.index, ""),
        "ALONG": (along, "a direction" if along else "or a direction, instead of one element"),
        "IS_SHARED": (place.name in contract.scalars, "by all ranks"),
        "EXPECTED": (place.expected, "what the oracle gives"),
        "ALLOWED": (allowed, "what is documented"),
        "BOUND": (float(f"{place.bound:.4g}"), why if place.bound else "nothing may be rounded"),
    }


def _moves(contract: Contract, case: Case) -> list[dict[str, Any]]:
    return [
        {name: _nested(value, case.dtype) for name, value in moved.items()}
        for moved in curves(reference(contract, Example(case)))
    ]


def _cotangents(contract: Contract, case: Case) -> list[dict[str, Any]]:
    return [
        {name: _nested(value, "float64") for name, value in rank.items()}
        for rank in contract.cotangents(case)
    ]


def _literals(contract: Contract, one: Given) -> list[dict[str, str]]:
    """Return every rank's inputs as Python."""
    case = one.case
    return [
        {
            name: _tensor(
                array,
                case.scalar_dtype if name in contract.scalars else case.dtype,
                case.strides,
                one.mode != "inference" and name not in case.frozen,
                case.device,
            )
            for name, array in given.items()
        }
        for given in contract.inputs(case)
    ]


def _tensor(array: Array, dtype: str, strides: str, requires_grad: bool, device: str = "cpu") -> str:
    """Return a tensor as Python: what `cases.tensor` makes of an array."""
    on = "" if device == "cpu" else f", device={_python(device)}"
    if np.issubdtype(array.dtype, np.integer):
        return f"tensor({_lines(array.tolist())}{on})"
    text = f"tensor({_lines(_nested(array, dtype))}, dtype=torch.{dtype}{on})"
    if has_layout(strides, array.ndim):
        text = f"{strides}({text})"
    return f"{text}.requires_grad_()" if requires_grad else text


def _lines(value: Any) -> str:
    text = pprint.pformat(value, width=WIDTH - 16, compact=True)
    if "\n" not in text and len(text) < WIDTH - 50:
        return text
    return "\n" + "\n".join(" " * 16 + line for line in text.splitlines()) + "\n" + " " * 12


def _nested(array: Array, dtype: str) -> Any:
    """Return nested lists of the shortest numbers that round to the array's in `dtype`."""
    exact = np.asarray(array, dtype=np.float64)
    short = exact.copy()
    if dtype != "float64":
        missing = np.ones(exact.shape, dtype=bool)
        for digits in range(1, 18):
            tried = np.vectorize(lambda x, digits=digits: float(f"{x:.{digits}g}"), otypes=[float])(exact)
            fits = missing & (rounded(tried, dtype) == exact)
            short = np.where(fits, tried, short)
            missing &= ~fits
    return short.tolist()


def _law(check: Check, example: Example) -> dict[str, str]:
    """Return what a law needs to judge the example in its own world, as Python."""
    row, size = check.world.row, example.case.world_size
    world = row.source.format(size=size, schedule=example.schedule, sends=example.sends, seconds=SECONDS / 2)
    return {
        "name": _python(check.law.name),
        "contract": _python(check.contract.name),
        "conventions": _python(check.subject.conventions),
        "module": f"{table.__package__}.{row.name}",
        "class": row.source.partition("(")[0],
        "world": world,
        "example": as_python(example),
    }
