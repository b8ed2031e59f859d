"""A falsified check as one small Python file that anyone can run."""

import inspect
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

from verified_losses import oracles
from verified_losses.oracles import (
    clip,
    coca,
    complex_step,
    cross_entropy,
    distill,
    exchange,
    gather,
    infonce,
    ntxent,
    siglip,
)
from verified_losses.oracles.complex_step import Array

from .. import process_state
from ..cases import LAYOUTS, Case, has_layout, rounded
from ..contracts import Contract
from ..examples import Example, as_python
from ..laws import INFERENCE, Falsified, Place
from ..laws.communication import Collectives, together
from ..laws.compiled import compilable
from ..laws.gradients import STEP, curve, unweighted, weighted
from ..laws.metamorphic import padding_filled
from ..running import refilled
from ..subjects import Target
from ..verify.certifier import Check, Finding
from ..verify.fingerprints import fingerprint
from ..worlds import WorldError, table
from ..worlds.simulated import SimulationError
from .text import write_whole

SECONDS = 60
"""How long a file lets its ranks run."""
MARK = "# verified-losses counterexample"
"""How a file begins."""
REASON = 3000
"""Characters of a reason that a file quotes."""
WIDTH = 100

ORACLES = (complex_step, gather, exchange, clip, coca, distill, siglip, infonce, ntxent, cross_entropy)
FORM = ("structure", "dtype and device", "altered inputs", "shape", "presence of the gradient")
"""What is wrong with an output other than its numbers."""


@dataclass(frozen=True)
class Call:
    """One call of the target, on every rank."""

    name: str
    doc: str
    case: Case
    mode: str = "train"


@dataclass(frozen=True)
class Program:
    """What a law does with a case."""

    act: str
    """The template of what each rank does."""
    prepare: Callable[[Case], Case] = lambda case: case
    other: tuple[str, str, Callable[[Case], Case]] | None = None
    """The second call's name, what it is given in words, and its case."""


ONCE = ("once", "compiled", "modes")
"""One call: as it is, compiled, or under whichever mode of torch it is wrong."""

PROGRAMS = {
    "terms equal the oracle": Program("modes"),
    "gradients equal the oracle": Program("once", unweighted),
    "cotangents pass through": Program("once", weighted),
    "twice differentiable": Program("curve"),
    "mean over ranks equals single process": Program(
        "mean", unweighted, ("whole", "the whole batch on one rank", together)
    ),
    "second derivatives travel": Program("travel"),
    "inputs unchanged": Program("modes"),
    "outputs well formed": Program("once"),
    "deterministic": Program("again"),
    "leaves no trace": Program("trace"),
    "backward is silent": Program("silent"),
    "used equals fresh": Program("used"),
    "compiled equals eager": Program("compiled", compilable),
    "compiled keeps dtypes": Program("compiled"),
    "padding never matters": Program("pair", other=("filled", "other logits at padding", padding_filled)),
}
"""By the law's name; a law without one is judged by `properties` itself, after one call."""


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
    check, error = finding.check, finding.error
    contract = check.contract
    assert finding.smallest is not None
    steps, drawn = finding.smallest.steps, finding.smallest.case
    program = PROGRAMS.get(check.law.name)
    judge = _judge(program, error)
    law = judge == "law" or not finding.smallest.is_plain
    program = program or Program("once")
    case = program.prepare(drawn)
    calls = [Call("inputs", "what each rank is given", case)]
    if program.other is not None:
        name, doc, change = program.other
        calls.append(Call(name, doc, change(case)))
    for place, step in enumerate(steps):
        calls.append(Call(f"before_{place + 1}", "what each rank was given before", step.case, step.mode))

    known = error.place if isinstance(error, Falsified) else None
    if judge == "words":
        known = Place("")
    elif judge in ("law", "returns") or known is None:
        judge, known = "returns", Place("")
    row = check.world.row
    horovod = row.launcher == "horovodrun"
    numbers = judge in ("term", "gradient", "mean", "pair")
    sources = contract.oracle_source(calls[1].case if judge == "mean" else case)
    derived = judge == "gradient" or (judge == "mean" and known.kind == "gradient")
    uses_oracle = judge in ("term", "gradient", "mean") and bool(sources)
    weights = {
        call.name: _cotangents(contract, call.case)
        for call in calls
        if call.case.cotangents != "ones" or program.act == "travel"
    }
    shown = [_call(contract, call, weights) for call in calls]
    layouts = [name for name in LAYOUTS if any(f"{name}(" in str(call["ranks"]) for call in shown)]
    layout = case.cotangent_strides
    if layout in LAYOUTS and layout not in layouts:
        layouts.append(layout)
    act = "once" if program.act in ONCE else program.act
    names = [
        name for name in contract.inputs(case)[0] if re.search(rf"\b{name}\b", " ".join(sources.values()))
    ]
    text = (
        _templates()
        .get_template("counterexample.py.jinja")
        .render(
            fingerprint=fingerprint(finding),
            title=_title(check, case),
            reason=_quoted(finding.reason),
            file_name=path.name,
            target=_portable(check.subject.target),
            home=os.path.relpath(Path.cwd(), path.parent),
            arguments=_arguments(contract.constructor(case)),
            world_size=case.world_size,
            horovod=horovod,
            launcher=row.launcher,
            over=row.over,
            rank_variable="HOROVOD_RANK" if horovod else "RANK",
            terms=contract.terms,
            seconds=SECONDS,
            # a crash, or a silent exit, must not take the verdict with it
            launched=case.world_size > 1 or judge == "returns",
            constants=_constants(contract, case, program, judge, known, weights, bool(sources)),
            layouts=[inspect.getsource(LAYOUTS[name]).rstrip() for name in layouts],
            calls=shown,
            build_source=contract.build_source(),
            call_source=contract.call_source(),
            output_dict=case.output_dict,
            weight_source=f"{layout}(weight.to(term.dtype))"
            if layout in LAYOUTS
            else "weight.to(term.dtype)",
            run="form" if judge == "form" else "none" if act in ("travel", "curve") else "run",
            act=act,
            source=_source(act),
            modes=_modes(program, judge, known),
            oracle_functions=inlined(sources, derived) if uses_oracle else "",
            oracle_names=names,
            oracle_terms=sources,
            derived=derived,
            weighted="inputs" in weights,
            agree=numbers,
            judge=judge,
            kind=known.kind,
            mixed=known.along is not None,
            mean=known.rank is None,
            zero=known.kind == "gradient",
            shared=known.name in contract.scalars,
            law=_law(check, finding.smallest) if law else None,
        )
    )
    return re.sub(r"\n{4,}", "\n\n\n", text)


def inlined(sources: dict[str, str], derived: bool) -> str:
    """Return the source of the functions of `oracles` that expressions name, and of all that those need."""
    found: dict[str, str] = {}

    def add(name: str, value: object) -> None:
        if name in found or getattr(value, "__module__", "").rpartition(".")[0] != oracles.__name__:
            return
        assert inspect.isfunction(value)
        found[name] = ""
        for other in re.findall(r"\w+", inspect.getsource(value)):
            known = value.__globals__.get(other)
            if isinstance(known, float):
                found[other] = f"{other} = {known!r}"
            elif inspect.isfunction(known):
                add(other, known)
        # after what it needs
        del found[name]
        # the first paragraph of what it says will do
        found[name] = re.sub(r'(?s)("""[^"\n]+)\n\n.*?"""', r'\1"""', inspect.getsource(value).rstrip())

    words = set(re.findall(r"\w+", " ".join(sources.values()))) | (
        {"directional_derivative"} if derived else set()
    )
    for module in ORACLES:
        for name, value in vars(module).items():
            if name in words and inspect.isfunction(value):
                add(name, value)
    functions = [source for source in found.values() if source.startswith("def ")]
    constants = ["Array = np.ndarray", *(source for source in found.values() if source not in functions)]
    return "\n\n\n".join(["\n".join(constants), *functions])


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


def _source(act: str) -> str:
    """Return what of `properties` a program needs, as Python that needs torch and NumPy alone."""
    if act == "silent":
        imports = "from typing import Any\n\nfrom torch.utils._python_dispatch import TorchDispatchMode\n\n\n"
        return imports + inspect.getsource(Collectives)
    if act == "used":
        return inspect.getsource(refilled)
    return inspect.getsource(process_state).partition('"""\n\n')[2] if act == "trace" else ""


def _judge(program: Program | None, error: Exception | None) -> str:
    """Return the template that compares what the ranks saw, or "law" where only the law itself can."""
    if program is None:
        return "law"
    if isinstance(error, SimulationError) and error.finding != "raised":
        return "law"
    if isinstance(error, WorldError):
        return "returns"
    if isinstance(error, Falsified) and program.act in ("trace", "silent"):
        return "words"
    if not isinstance(error, Falsified) or error.place is None:
        return "law"
    kind = error.place.kind
    if kind in FORM:
        return "form" if program.act in ONCE else "law"
    by_act = {
        "mean": "mean",
        "pair": "pair",
        "curve": "pair",
        "again": "bits",
        "used": "bits",
        "travel": "term",
    }
    return by_act.get(program.act) or ("gradient" if kind == "gradient" else "term")


def _modes(program: Program, judge: str, known: Place) -> list[str]:
    """Return under which modes of torch the target is called, one after another."""
    if program.act == "compiled":
        return ["compiled"]
    if program.act == "modes" and judge == "returns":
        return ["train", "inference"]
    return ["inference" if known.note == INFERENCE else "train"]


def _title(check: Check, case: Case) -> str:
    ranks = "one process" if case.world_size == 1 else f"{case.world_size} ranks"
    return (
        f'{check.label}: "{check.law.name}" does not hold in {ranks} '
        f"({check.contract.name}, convention {case.option('convention', 'exact')})."
    )


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


def _constants(
    contract: Contract,
    case: Case,
    program: Program,
    judge: str,
    place: Place,
    weights: dict[str, list[dict[str, Any]]],
    oracle: bool,
) -> list[tuple[str, Any, str]]:
    """Return the names, values and comments of what the templates ask for."""
    constants: list[tuple[str, Any, str]] = []
    for name, cotangents in weights.items():
        which = "COTANGENTS" if name == "inputs" else f"{name.upper()}_COTANGENTS"
        constants.append((which, cotangents, "what each rank's terms are multiplied with"))
    if program.act == "curve":
        if not weights:
            constants.append(("COTANGENTS", None, ""))
        constants.append(("STEP", STEP, "of the finite differences"))
        constants.append(("ALONG", _directions(contract, case), "how the inputs move"))
    if judge in ("returns", "words"):
        return constants
    if place.rank is not None:
        constants.append(("RANK", place.rank, ""))
    if judge in ("form", "bits"):
        constants.append(("WHAT", place.what, ""))
    if judge == "form":
        fit = place.expected if place.kind == "dtype and device" else [place.expected]
        return [*constants, ("ALLOWED", fit, "what is documented")]
    constants.append(("WHERE", str(place), ""))
    if judge == "bits":
        return constants
    constants.append(("NAME", place.name, ""))
    if place.along is not None:
        constants.append(("ALONG", _nested(place.along, "float64"), "the direction"))
    elif not (judge == "mean" and place.kind == "term"):
        constants.append(("INDEX", place.index, ""))
    if judge in ("term", "gradient") and not oracle:
        constants.append(("EXPECTED", place.expected, "what the oracle gives"))
    why = "how far rounding may take a right implementation, derived for these inputs"
    constants.append(("BOUND", float(f"{place.bound:.4g}"), why if place.bound else "nothing may be rounded"))
    return constants


def _directions(contract: Contract, case: Case) -> list[dict[str, Any]]:
    names = [name for name, wanted in contract.gradient_expected(case).items() if wanted]
    return [
        {name: _nested(value, "float64") for name, value in curve(case, rank, arrays, names).items()}
        for rank, arrays in enumerate(contract.inputs(case))
    ]


def _cotangents(contract: Contract, case: Case) -> list[dict[str, Any]]:
    return [
        {name: _nested(value, "float64") for name, value in rank.items()}
        for rank in contract.cotangents(case)
    ]


def _call(contract: Contract, call: Call, weights: dict[str, Any]) -> dict[str, Any]:
    """Return a call as the templates ask for it."""
    case = call.case
    extra = "" if case.output_dict else ", output_dict=False"
    if call.name in weights:
        which = "COTANGENTS" if call.name == "inputs" else f"{call.name.upper()}_COTANGENTS"
        extra += f", cotangents={which}[rank]"
    ranks = []
    for given in contract.inputs(case):
        literals = {}
        for name, array in given.items():
            dtype = case.scalar_dtype if name in contract.scalars else case.dtype
            wants_grad = call.mode != "inference" and name not in case.frozen
            literals[name] = _tensor(array, dtype, case.strides, wants_grad)
        ranks.append(literals)
    return {
        "name": call.name,
        "doc": f"Return {call.doc}.",
        "mode": call.mode,
        "extra": extra,
        "ranks": ranks,
    }


def _tensor(array: Array, dtype: str, strides: str, requires_grad: bool) -> str:
    """Return a tensor as Python: what `cases.tensor` makes of an array."""
    if np.issubdtype(array.dtype, np.integer):
        return f"tensor({_lines(array.tolist())})"
    text = f"tensor({_lines(_nested(array, dtype))}, dtype=torch.{dtype})"
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
