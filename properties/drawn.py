"""What was really drawn: of every field of a case, which values, and in how many cases."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from .cases import Case
from .certifier import Finding
from .contracts import Contract
from .coverage import regions

Drawn = dict[str, dict[str, int]]
"""Field, value, number of cases."""
SMALL = 0.001
Facet = Callable[[Case], Iterable[str]]
"""What a case counts for; one case may count for several values, or for none."""


def count(findings: Sequence[Finding]) -> Drawn:
    """Count the cases that were checked, by every facet; a facet that no case has is left out."""
    counts: dict[str, Counter[str]] = {"world": Counter()}
    for finding in findings:
        facets = _facets(finding.check.contract)
        for case in finding.cases:
            counts["world"][finding.world] += 1
            for name, facet in facets.items():
                counts.setdefault(name, Counter()).update(facet(case))
            for name, value in case.options:
                if _is_number(value):
                    counts.setdefault(name, Counter())[str(value)] += 1
    return {
        name: {value: values[value] for value in sorted(values, key=in_order)}
        for name, values in counts.items()
        if values
    }


def _facets(contract: Contract) -> dict[str, Facet]:
    """Return what the cases of a contract differ in."""
    facets = FACETS.copy()
    if contract.is_loss:
        facets |= SCALARS
    if contract.drawn.get("captions"):
        facets |= CAPTIONS
    if contract.drawn.get("teacher"):
        facets |= TEACHER
    return facets


def span(number: int) -> str:
    """Return the powers of two between which a number lies: 1, 2-3, 4-7, 8-15."""
    first = 1 << (number.bit_length() - 1) if number > 0 else 0
    return f"{first}-{2 * first - 1}" if first > 1 else str(first)


def decade(number: float | None) -> str:
    """Return the powers of ten between which a number lies, with its sign; all below `SMALL` are one."""
    if not number:
        return "none" if number is None else "0"
    exponent = math.floor(math.log10(max(abs(number), SMALL)))
    first, last = (10.0**exponent, 10.0 ** (exponent + 1)) if abs(number) >= SMALL else (0.0, SMALL)
    return f"{first:g} to {last:g}" if number > 0 else f"-{last:g} to {-first or 0:g}"


def _flags(case: Case) -> list[str]:
    """Return the combination of the options that are not numbers."""
    flags = [f"{name}={value}" for name, value in case.options if not _is_number(value)]
    return [", ".join(flags)] if flags else []


def _split(case: Case) -> list[str]:
    if case.world_size == 1:
        return ["one rank"]
    return ["equal" if len(set(case.rows)) == 1 else "unequal"]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def in_order(value: str) -> tuple[bool, list[float], str]:
    """Sort numbers and spans by size, and words after them."""
    numbers = re.findall(r"(?:(?<!\d)-)?\d+(?:\.\d+)?(?:e[+-]\d+)?", value)
    is_word = not re.match(r"-?\d", value)
    return is_word, [] if is_word else [float(one) for one in numbers], value


FACETS: dict[str, Facet] = {
    "ranks": lambda case: [str(case.world_size)],
    "rows x width": lambda case: [f"{span(sum(case.rows))} x {span(case.width)}"],
    "rows of the ranks": _split,
    "dtype": lambda case: [case.dtype],
    "features": lambda case: [case.pattern],
    "layout": lambda case: [case.strides],
    "flags": _flags,
    "frozen": lambda case: case.frozen or ["nothing"],
    "cotangents": lambda case: [case.cotangents],
    "layout of the cotangents": lambda case: [case.cotangent_strides],
    "regions": regions,
    "returned": lambda case: ["dict" if case.output_dict else "tuple or tensor"],
}
SCALARS: dict[str, Facet] = {
    "logit scale": lambda case: [decade(case.scale)],
    "logit bias": lambda case: [decade(case.bias)],
    "shape of the scalars": lambda case: [str(list(case.scalar_shape))],
    "dtype of the scalars": lambda case: [case.scalar_dtype],
}
CAPTIONS: dict[str, Facet] = {
    "padding": lambda case: [case.pads],
    "rank of padding alone": lambda case: ["yes" if case.pad_rows else "no"],
    "pad id": lambda case: [str(case.pad_id)],
    "vocabulary": lambda case: [span(case.vocabulary)],
    "caption length": lambda case: [span(case.length)],
}
TEACHER: dict[str, Facet] = {"teacher's width": lambda case: [span(case.teacher_width)]}
