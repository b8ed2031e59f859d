"""Statistics of the drawn cases: for every field, its values, and in how many cases each was drawn."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from verified_losses.oracles.infonce import normalize

from ..cases import Case, captions, feature_pair, without_zeros
from ..contracts import Contract
from ..names import HALVES, STRIDES
from ..subjects import Subject
from ..verify.certifier import Finding

Drawn = dict[str, dict[str, int]]
"""Field, value, number of cases."""
SMALL = 0.001
TILE = 64
"""Rows that a tile or chunk in common use holds."""
SATURATED = 17.0
"""Beyond this, exp(-logit) is lost beside 1 in float32."""
FLAGS = ("convention", "local_loss", "gather_with_grad", "dist_impl", "bidirectional")
ALWAYS = {
    "one row on a rank", "more than 64 rows in all", "more than 128 columns", "drawn cotangents",
    "scale above 50", "no bias", "scalars of shape [1]", "saturated logits", "features of few bits",
    "duplicate rows", *(f"width of remainder {rest} by 8" for rest in range(8)),
}  # fmt: skip
"""The regions that cases of every contract can lie in."""
PADDED = {"padding but for one token", "padding inside a caption", "pad id other than 0"}
Facet = Callable[[Case], Iterable[str]]
"""What a case counts for; one case may count for several values, or for none."""


def regions(case: Case) -> frozenset[str]:
    """Return the names of all regions that a case lies in."""
    given = {
        f"world of {case.world_size}": True,
        f"dtype {case.dtype}": True,
        f"width of remainder {case.width % 8} by 8": True,
        "one row in all": sum(case.rows) == 1,
        "one row on a rank": 1 in case.rows,
        "no row on a rank": 0 in case.rows,
        "rows that differ between ranks": len(set(case.rows)) > 1,
        f"more than {TILE} rows in all": sum(case.rows) > TILE,
        f"more than {TILE} rows on a rank": max(case.rows) > TILE,
        f"more than {2 * TILE} columns": case.width > 2 * TILE,
        f"{case.strides} inputs": True,
        "drawn cotangents": case.cotangents == "drawn",
        f"{case.cotangent_strides} cotangents": True,
        "scale above 50": case.scale > 50,
        "scale 0": case.scale == 0,
        "no bias": case.bias is None,
        "scalars of shape [1]": case.scalar_shape == (1,),
        "wide scalars": case.wide_scalars,
        "a dict": case.output_dict,
        "saturated logits": _largest_logit(case) > SATURATED,
        "features of few bits": case.pattern == "grid",
        "duplicate rows": case.pattern == "duplicates" and sum(case.rows) > 1,
    }
    named = {name for name, inside in given.items() if inside}
    named |= {f"frozen {name}" for name in case.frozen}
    flags = [f"{name}={value}" for name, value in case.options if name in FLAGS]
    if flags:
        named.add(", ".join(flags))
    return frozenset(named | _padding(case))


def every_region(contract: Contract, subject: Subject, sizes: Iterable[int]) -> frozenset[str]:
    """Return the regions that cases of a subject can lie in, in worlds of these sizes."""
    sizes = set(sizes)
    several = max(sizes, default=1) > 1
    scaled = "scales" not in contract.drawn and contract.scales_of(subject) is None
    empty = several and not subject.even and subject.empty_ranks and contract.takes_empty_ranks
    given = {
        "one row in all": 1 in sizes or empty,
        "rows that differ between ranks": several and not subject.even,
        "no row on a rank": empty,
        f"more than {TILE} rows on a rank": (contract.most_rows or math.inf) > TILE,
        "wide scalars": bool(set(HALVES) & set(subject.dtypes)),
        "scale 0": scaled,
        "a dict": subject.output_dict,
    }
    named = ALWAYS | {name for name, inside in given.items() if inside}
    named |= {f"world of {size}" for size in sizes} | {f"dtype {dtype}" for dtype in subject.dtypes}
    drawn = {"strides": STRIDES, "cotangent_strides": ("contiguous",), **contract.drawn}
    if subject.strides != STRIDES:
        drawn["strides"] = subject.strides
    if subject.cotangent_strides != STRIDES and "cotangent_strides" in contract.drawn:
        drawn["cotangent_strides"] = subject.cotangent_strides
    for name, what in (("strides", "inputs"), ("cotangent_strides", "cotangents")):
        named |= {f"{layout} {what}" for layout in drawn[name]}
    if contract.drawn.get("captions"):
        rarely = type(contract).defined is Contract.defined
        named |= PADDED | ({"padding alone"} if rarely else set())
        named |= {"one rank of padding"} if rarely and several else set()
    frozen = contract.drawn.get("freezable", contract.differentiable)
    named |= {f"frozen {name}" for name in frozen if len(frozen) > 1}
    return frozenset(named | _flag_regions(contract, subject))


def _flag_regions(contract: Contract, subject: Subject) -> set[str]:
    """Return the combinations of flags that cases of a subject can have."""
    pinned = dict(subject.options)
    values = dict(contract.values)
    if "convention" in values:
        values["convention"] = subject.conventions
    flags = [name for name in FLAGS if name in values]
    choices = [[pinned[name]] if name in pinned else list(values[name]) for name in flags]  # type: ignore[arg-type]
    if "bidirectional" in flags and "bidirectional" not in pinned:
        choices = [[False]]
    return (
        {", ".join(map("{}={}".format, flags, one)) for one in itertools.product(*choices)}
        if flags
        else set()
    )


def table(cases: Iterable[Case]) -> dict[str, int]:
    """Return how many of the cases lie in each region, the rarest first."""
    counts = Counter(name for case in cases for name in regions(case))
    return dict(sorted(counts.items(), key=lambda item: (item[1], item[0])))


def _largest_logit(case: Case) -> float:
    image, text = feature_pair(case, case.width, 1)
    if case.features in ("normalized", "unit"):
        image, text = map(normalize, without_zeros((image, text)))
    return float(np.max(abs(case.scale * image @ text.T + (case.bias or 0))))


def _padding(case: Case) -> set[str]:
    if case.pads == "none" and not case.pad_rows:
        return set()
    is_pad = captions(case)[1] == case.pad_id
    given = {
        "padding alone": is_pad.all(),
        "padding but for one token": np.count_nonzero(~is_pad) == 1,
        "one rank of padding": any(part.all() for part in case.split(is_pad)) and not is_pad.all(),
        "padding inside a caption": (is_pad[:, :-1] & ~is_pad[:, 1:]).any(),
        "pad id other than 0": case.pad_id != 0,
    }
    return {name for name, inside in given.items() if inside}


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
            for name, value in case.drawn:
                counts.setdefault(name, Counter())[
                    span(value) if isinstance(value, int) else decade(value)
                ] += 1
    return {
        name: {value: values[value] for value in sorted(values, key=in_order)}
        for name, values in counts.items()
        if values
    }


def added(several: Iterable[Drawn]) -> Drawn:
    """Return the sum of several counts."""
    counts: dict[str, Counter[str]] = {}
    for drawn in several:
        for name, values in drawn.items():
            counts.setdefault(name, Counter()).update(values)
    return {
        name: {value: values[value] for value in sorted(values, key=in_order)}
        for name, values in counts.items()
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
    "device": lambda case: [case.device],
    "returned": lambda case: ["dict" if case.output_dict else "tuple or tensor"],
}
SCALARS: dict[str, Facet] = {
    "logit scale": lambda case: [decade(case.scale)],
    "logit bias": lambda case: [decade(case.bias)],
    "shape of the scalars": lambda case: [str(list(case.scalar_shape))],
    "dtype of the scalars": lambda case: [case.scalar_dtype],
    "device of the scalars": lambda case: [case.scalar_device(0)],
}
CAPTIONS: dict[str, Facet] = {
    "padding": lambda case: [case.pads],
    "rank of padding alone": lambda case: ["yes" if case.pad_rows else "no"],
    "pad id": lambda case: [str(case.pad_id)],
    "vocabulary": lambda case: [span(case.vocabulary)],
    "caption length": lambda case: [span(case.length)],
}
TEACHER: dict[str, Facet] = {"teacher's width": lambda case: [span(case.teacher_width)]}
