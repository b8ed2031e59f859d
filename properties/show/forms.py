"""How a target is called, in words."""

import re

from ..contracts import contract_of
from ..forms import Form
from ..names import ROWS_OF
from ..subjects import Subject, Target

ROWS = {
    "raw": "takes rows as they are",
    "normalized": "normalises rows",
    "unit": "gets normalised rows",
}


def described(contract: str, subject: Subject) -> list[str]:
    """Return how a target is constructed and called, and what it does with rows, a line each."""
    form, name, lines = subject.form, Target.of(subject.target).name, []
    held_to = contract_of(contract)
    if form.call:
        built = f"{name}({', '.join(f'{argument}={value}' for argument, value in arguments(form))})"
        target = built if form.constructed and arguments(form) else name
        called = re.sub(r"\btarget(?=[(,])", target, form.call)
        lines.append(f"calls {called}")
    lines += [f"{path} holds {held_as(held)}" for path, held in form.parameters]
    if form.total:
        terms = " and ".join(held_to.terms)
        lines.append(f"returns the sum of {terms}: each alone is not verified")
    if contract in ROWS_OF:
        lines.append(ROWS[subject.features or held_to.features])
    if subject.widths:
        lines.append(f"takes features of width {', '.join(map(str, subject.widths))}")
    if subject.scales == "one" and contract in ROWS_OF:
        lines.append("takes no scale: it is 1 in every case")
        lines += [
            f"did you mean --parameter temperature={argument}?"
            for argument, _ in subject.defaults
            if re.search("temp|tau|scale", argument)
        ]
    if left := defaults_of(subject):
        lines.append(left)
    if subject.pad_ids:
        taken = ", ".join(map(str, subject.pad_ids))
        lines.append(f"raises for other labels of padding than {taken}: no case has them")
    if subject.refuses_one:
        lines.append(f"refuses a batch of one row: no rank of a case has one ({subject.refuses_one})")
    if subject.single:
        lines.append("computes in float32: no case is in float64")
    if held_to.tolerance:
        lines.append(f"tolerance: {held_to.tolerance}")
    if not subject.gathers:
        lines.append("does not gather: verified in one process; its negatives are local")
    return lines


def defaults_of(subject: Subject) -> str:
    """Return which arguments nobody passes, in words; nothing where there is none."""
    left = ", ".join(f"{argument}={value}" for argument, value in subject.defaults)
    return f"left at their defaults: {left}" if left else ""


def arguments(form: Form) -> list[tuple[str, str]]:
    """Return what the constructor is given besides what the contract says."""
    return [*form.arguments, *([(form.rows, "rows")] if form.rows else [])]


def held_as(name: str) -> str:
    """Return a name of the contract as what a parameter holds."""
    soft = name.removeprefix("softplus_")
    return name.replace("_", " ") if soft == name else f"what softplus makes a {soft}"
