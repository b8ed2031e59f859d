"""A falsified check as one small Python file that anyone can run."""

import os
import pprint
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from verified_losses.oracles.complex_step import Array

from ..cases import LAYOUTS, Case, has_layout, rounded, spoil
from ..contracts import Contract, Inputs
from ..devices import CPU, kind_of, products_of
from ..examples import Example, Mode
from ..forms import Form, source
from ..laws import INFERENCE, Falsified, Law, Place
from ..laws.gradients import curves
from ..reference import reference
from ..running import constructor
from ..standalone import launch, loading
from ..standalone.acts import called, derive_twice
from ..standalone.calls import as_it_is, call_holding, in_turn, row_labels
from ..standalone.judges import (
    Judge,
    judge_form,
    judge_gradient,
    judge_nothing,
    judge_quoted,
    judge_term,
    judge_words,
)
from ..subjects import Subject, Target
from ..verify.certifier import Check, Finding
from ..verify.fingerprints import fingerprint
from ..worlds import WorldError
from ..worlds.simulated import SimulationError
from .quoting import Quotes, Unquotable
from .text import write_whole

SECONDS = 60
"""How long a file lets its ranks run."""
MARK = "# verified-losses counterexample"
"""How a file begins."""
REASON = 3000
"""Characters of a reason that a file quotes."""
WIDTH = 100

FORM = ("structure", "dtype and device", "altered inputs", "shape", "presence of the gradient")
"""What is wrong with an output other than its numbers."""
TEMPLATE = Path(__file__).with_name("templates") / "counterexample.py.jinja"
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

    def called(self, *others: str, rank: str = "rank", mode: Mode | None = None) -> str:
        """Return the call as Python, of `target`."""
        arguments = ["target", rank, self.name, *filter(None, [self.cotangents])]
        if (mode or self.mode) != "train":
            arguments.append(f'mode="{mode or self.mode}"')
        if not self.case.output_dict:
            arguments.append("output_dict=False")
        if self.case.cotangent_strides in LAYOUTS:
            arguments.append(f"layout={self.case.cotangent_strides}")
        return f"called({', '.join([*arguments, *others])})"


def write(finding: Finding, folder: Path) -> Path:
    """Write a finding's file into a folder, which is made where there is none; return its path.

    Raises:
        OSError: the folder cannot be written.
    """
    path = folder / file_name(finding.check, fingerprint(finding))
    # whole: another certifier may write the same file, or a reader meet half of it
    write_whole(path, render(finding, path).encode())
    return path


def file_name(check: Check, fingerprint: str) -> str:
    """Return the name of a finding's file."""
    words = re.sub(r"[^A-Za-z0-9_.]+", "-", f"{check.label}-{check.law.name}")
    return f"{words}-{fingerprint}.py"


def render(finding: Finding, path: Path) -> str:
    """Return the text of a finding's file, which is to lie at `path`.

    Where a formula cannot be quoted, the value that it gave is.
    """
    try:
        return _rendered(finding, path, by_oracle=True)
    except Unquotable:
        return _rendered(finding, path, by_oracle=False)


def _rendered(finding: Finding, path: Path, by_oracle: bool) -> str:
    check, example = finding.check, finding.smallest
    contract, law, row = check.contract, check.law, check.world.row
    form = check.subject.form
    assert example is not None
    judge, place = _judge(law, finding.error)
    by_law = judge is None or not example.is_plain
    judge = judge or judge_nothing
    if not by_oracle and judge in (judge_term, judge_gradient):
        judge = judge_quoted
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
            arguments = _arguments(constructor(contract, form, other.case))
            differs = arguments != _arguments(constructor(contract, form, case))
            alone = other.called("world_size=1", *[f"arguments={arguments}"] * differs, rank="0")

    ranks = {one.name: _literals(contract, one) for one in given}
    layouts = {one.case.cotangent_strides for one in given}
    layouts |= {name for name in LAYOUTS if any(f"{name}(" in str(literals) for literals in ranks.values())}
    # a crash must not take the verdict with it: torch's threads of a device may abort a process that ends
    launched = case.world_size > 1 or judge is judge_nothing or case.device != CPU
    start, gathered = row.talk if case.world_size > 1 else launch.ALONE
    builds = contract.build_with if form.constructed else as_it_is
    names: dict[str, Callable[..., Any]] = {
        "load": loader(check.subject),
        "build": builds,
        "call": call_form if form.call else contract.call_with,
        "judge": judge,
        "decide": launch.by_law if by_law else launch.by_judge,
        "ready": launch.on_cpu if case.device == CPU else launch.on_device,
        "start": start,
        "gathered": gathered,
    }
    quotes = Quotes()
    built = (builds, *form_functions(form)) if form.call else (builds, contract.call_with)
    acts = quotes.source(*(LAYOUTS[one] for one in LAYOUTS if one in layouts), *built, called, law.act)
    if form.call:
        acts += "\n\n\n" + source(form, contract.name, case.features == "unit")
    judged = quotes.source(judge)
    terms = contract.oracle_source(oracle_case) if by_oracle else {}
    called_oracles = [call.function for call in contract.calls(oracle_case).values()] if terms else []
    columns = [
        name for name in contract.inputs(case)[0] if re.search(rf"\b{name}\b", " ".join(terms.values()))
    ]
    done = {name: steps for name, steps in contract.preparations(oracle_case).items() if name in columns}
    functions = called_oracles + [step for steps in done.values() for step in steps]
    oracle = quotes.source(*functions) if "oracle" in quotes.given else ""
    run = quotes.source(launch.launched if launched else launch.verdict)
    # a form's own call is among the acts
    quoted = [one for name, one in names.items() if name in quotes.given and one is not call_form]
    run += "\n\n\n" + quotes.source(*quoted)

    constants = {
        one.cotangents: (
            _listed(contract.cotangents(one.case), "float64"),
            "what each rank's terms are multiplied with",
        )
        for one in given
        if one.cotangents
    }
    if law.act is derive_twice:
        moves = curves(reference(contract, Example(case)))
        constants["MOVES"] = (_listed(moves, case.dtype), "how each rank's inputs move")
    known = _given(check, example, place)
    constants |= {name: known[name] for name in known if name in quotes.given - set(constants)}
    template = jinja2.Template(
        TEMPLATE.read_text(), trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    text = template.render(
        python=python,
        mark=f"{MARK} {fingerprint(finding)}",
        title=_title(check, case),
        reason=quoted_reason(finding.reason),
        file_name=path.name,
        world_size=case.world_size,
        over=row.over,
        hosts=case.world_size > 1 and case.device == CPU and row.over == "gloo",
        imports=sorted(quotes.imports | ALWAYS | imports_of(acts) | _numbers(given)),
        target=portable(check.subject.target),
        home=os.path.relpath(Path.cwd(), path.parent),
        arguments=_arguments(constructor(contract, form, case)),
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
        no_oracle="oracle" in quotes.given and not oracle,
        columns=columns,
        prepared={name: _applied(steps, "one") for name, steps in done.items()},
        oracle_terms=terms,
        run=run,
        names={name: value.__name__ for name, value in names.items() if name in quotes.given},
        main="launched()" if launched else "verdict(0)",
    )
    return re.sub(r"\n{4,}", "\n\n\n", text)


def _numbers(given: list[Given]) -> set[str]:
    """Return the import of what is no number, where something is none."""
    return {"from math import inf, nan"} if any(one.case.spoiled for one in given) else set()


def call_form(loss: Any, given: dict[str, Any], output_dict: bool) -> Any:
    """Stand for the function of a form, which a file holds as text."""
    raise NotImplementedError


def form_functions(form: Form) -> list[Callable[..., Any]]:
    """Return the functions that a form's call needs."""
    called = [call_holding] * bool(form.parameters) + [row_labels] * ("labels" in form.names())
    return [*called, *[in_turn] * ("in_turn" in form.names())]


def form_fields(form: Form) -> dict[str, Any]:
    """Return those fields of a form that are not empty."""
    plain = Form()
    return {
        one.name: getattr(form, one.name)
        for one in fields(form)
        if getattr(form, one.name) != getattr(plain, one.name)
    }


def imports_of(text: str) -> set[str]:
    """Return the imports that a form's call needs."""
    needed = {"from functools import partial": "partial(", "import math": "math."}
    return {statement for statement, used in needed.items() if used in text}


def _judge(law: Law, error: Exception | None) -> tuple[Judge | None, Place]:
    """Return the judge of a finding, and the place that it compares; None if only the law can judge."""
    if law.by_law:
        return None, Place("")
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


def _applied(steps: tuple[Callable[..., Any], ...], name: str) -> str:
    """Return functions, applied one after another, as Python."""
    for step in steps:
        name = f"{step.__name__}({name})"
    return name


def loader(subject: Subject) -> Callable[[str], Any]:
    """Return what loads a target: the shortest function that can."""
    if subject.interpret:
        return launch.load_interpreted
    file = Target.of(subject.target).file
    alone = file is None or not file.is_file() or loading.is_plain(file)
    return launch.load_alone if alone and not subject.stubbed else loading.load


def _title(check: Check, case: Case) -> str:
    ranks = "one process" if case.world_size == 1 else f"{case.world_size} ranks"
    contract = check.contract
    convention = f", convention {case.convention}" if "convention" in contract.values else ""
    where = "" if case.device == CPU else f" on {case.device.replace('/', ', ')}"
    return f'{check.label}: "{check.law.name}" does not hold in {ranks}{where} ({contract.name}{convention}).'


def quoted_reason(reason: str) -> str:
    """Return a reason as it may stand in a docstring."""
    for folder in (Path.cwd(), sys.prefix, sys.base_prefix):
        reason = reason.replace(f"{folder}/", "")  # a file says the same wherever it was written
    short = reason if len(reason) <= REASON else f"{reason[:REASON]}\n[...]"
    wrapped = [textwrap.fill(line, WIDTH) if len(line) > WIDTH else line for line in short.splitlines()]
    return "\n".join(wrapped).strip().replace("\\", "\\\\").replace('"""', "'''")


def portable(target: str) -> str:
    """Return a target whose file lies below this folder by its path from here."""
    file = Target.of(target).file
    if file and file.resolve().is_relative_to(Path.cwd()):
        return str(Target(str(file.resolve().relative_to(Path.cwd())), Target.of(target).name))
    return target


def _arguments(arguments: dict[str, Any]) -> str:
    return f"{{{', '.join(f'{python(name)}: {python(value)}' for name, value in arguments.items())}}}"


def python(value: Any) -> str:
    """Return a value as Python, in double quotes where it holds none."""
    text = pprint.pformat(value, width=WIDTH, compact=True)
    return text if '"' in text else text.replace("'", '"')


def _given(check: Check, example: Example, place: Place) -> dict[str, tuple[Any, str]]:
    """Return the values, and comments, of what a judge may read."""
    sampled = f", by {check.contract.tolerance}" if check.contract.tolerance else ""
    why = f"how far rounding may take a right implementation, derived for these inputs{sampled}"
    allowed = place.expected if place.kind == "dtype and device" else [place.expected]
    along = None if place.along is None else _nested(place.along, "float64")
    return {
        "LAW": (check.law.name, ""),
        "CONTRACT": (check.contract.name, ""),
        "CONVENTIONS": (check.subject.conventions, ""),
        "FORM": (form_fields(check.subject.form), "how the target is called"),
        "DEVICES": (tuple(example.case.device.split("/")), "of the ranks, in turn"),
        "PRODUCTS": (_products(example), "settings of torch.backends.cuda.matmul"),
        "WORLD": (check.world.row.again or check.world.row.name, "in which kind of world it was seen"),
        "EXAMPLE": (example.to_json(), ""),
        "COTANGENTS": (None, "ones"),
        "WHERE": (str(place), ""),
        "RANK": (place.rank, ""),
        "KIND": (place.kind, ""),
        "NAME": (place.name, ""),
        "INDEX": (place.index, ""),
        "ALONG": (along, "a direction" if along else "or a direction, instead of one element"),
        "IS_SHARED": (place.name in check.contract.alike, "by all ranks"),
        "EXPECTED": (place.expected, "what the oracle gives"),
        "ALLOWED": (allowed, "what is documented"),
        "BOUND": (float(f"{place.bound:.4g}"), why if place.bound else "nothing may be rounded"),
    }


def _products(example: Example) -> dict[str, bool]:
    """Return how the device of an example multiplied matrices."""
    settings: dict[str, bool] = {}
    for case in (*(step.case for step in example.steps), example.case):
        if kind_of(case.device) == "cuda":
            settings |= products_of(case.dtype, case.matmul)
    return settings


def _listed(ranks: Inputs, dtype: str) -> list[dict[str, Any]]:
    return [{name: _nested(value, dtype) for name, value in given.items()} for given in ranks]


def _literals(contract: Contract, one: Given) -> list[dict[str, str]]:
    """Return every rank's inputs as Python."""
    case = one.case
    return [
        {
            name: _tensor(
                array,
                case.dtype_of(name, name in contract.scalars),
                case.strides,
                one.mode != "inference" and not case.is_frozen(name, rank),
                case.scalar_device(rank) if name in contract.scalars else case.device_of(rank),
            )
            for name, array in given.items()
        }
        for rank, given in enumerate(spoil(case, contract.inputs(case)))
    ]


def _tensor(array: Array, dtype: str, strides: str, requires_grad: bool, device: str = "cpu") -> str:
    """Return a tensor as Python: what `cases.tensor` makes of an array."""
    on = "" if device == "cpu" else f", device={python(device)}"
    if not np.issubdtype(array.dtype, np.floating):
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
