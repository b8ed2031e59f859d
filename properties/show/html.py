"""A record as one self-contained page: no script, nothing from the network, light, dark and on paper."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .certificate import Certificate, Certificates, Property
from .drawn import in_order
from .text import as_text, plain, shortened

DECADES = 5
"""Of error/bound that a distribution shows; what is smaller shares one bar."""
PER_DECADE = 4
BAR, HEIGHT = 14, 40
"""Of a distribution: the width of a bar and the height of the highest."""
MARKS = {
    "holds": "✓",
    "falsified": "✗",
    "incomplete": "◐",
    "known": "≈",
    "limit": "◇",
    "skipped": "–",
    "not verified": "–",
}  # fmt: skip
"""Beside the word and the colour of a verdict."""


@dataclass(frozen=True)
class Bar:
    """Cases whose error/bound lies between two values."""

    x: float
    height: float
    cases: int
    values: str


@dataclass(frozen=True)
class Distribution:
    """The error/bound of every case of one property, in all worlds."""

    property: str
    cases: int
    median: float
    worst: float
    bars: list[Bar]

    @classmethod
    def of(cls, name: str, ratios: Sequence[float]) -> "Distribution":
        """Count ratios: 0, then those below the first decade, then by quarters of a decade up to 1."""
        last = DECADES * PER_DECADE + 1
        counts = [0] * (last + 1)
        for ratio in ratios:
            place = math.floor(PER_DECADE * (math.log10(ratio) + DECADES)) + 2 if ratio else 0
            counts[min(max(place, 1), last) if ratio else 0] += 1
        edges = [10 ** (place / PER_DECADE - DECADES) for place in range(last)]
        values = ["exactly 0", f"under {edges[0]:.0e}"]
        values += [f"{low:.1e} to {high:.1e}" for low, high in pairwise(edges)]
        bars = [
            Bar(place * BAR, HEIGHT * count / max(counts), count, values[place])
            for place, count in enumerate(counts)
            if count
        ]
        return cls(name, len(ratios), median(ratios), max(ratios), bars)


@dataclass(frozen=True)
class Grid:
    """Counts of drawn values in two dimensions, written "rows x width"."""

    rows: list[str]
    columns: list[str]
    cells: dict[tuple[str, str], int]
    most: int


@dataclass(frozen=True)
class View:
    """What the page shows of one certificate, beside what stands in it."""

    certificate: Certificate
    worlds: list[str]
    matrix: dict[str, dict[str, Property]]
    """Property, world, and what came of it."""
    distributions: list[Distribution]
    exact: list[str]
    """Properties whose cases all have error 0."""
    shapes: Grid | None

    @property
    def counts(self) -> Counter[str]:
        """How many checks there are, in all and of each verdict, and how many cases."""
        found = self.certificate.properties
        counts = Counter(shown_verdict(one) for one in found)
        return counts + Counter(checks=len(found), cases=sum(one.examples for one in found))

    def having(self, verdict: str) -> list[Property]:
        """Return the checks that have a verdict."""
        return [one for one in self.certificate.properties if shown_verdict(one) == verdict]

    def of_counterexample(self, code: str) -> list[Property]:
        """Return the checks that a counterexample file falsifies."""
        return [one for one in self.having("falsified") if one.counterexample == code]


def shown_verdict(one: Property) -> str:
    """Return the verdict; "known" where it is falsified and accepted."""
    return "known" if one.verdict == "falsified" and one.known else one.verdict


def view(certificate: Certificate) -> View:
    """Arrange a certificate for the page."""
    matrix: dict[str, dict[str, Property]] = {}
    ratios: dict[str, list[float]] = {}
    for one in certificate.properties:
        matrix.setdefault(one.property, {})[one.world] = one
        ratios.setdefault(one.property, []).extend(one.errors_over_bound)
    return View(
        certificate,
        list(dict.fromkeys(one.world for one in certificate.properties)),
        matrix,
        [Distribution.of(name, values) for name, values in ratios.items() if any(values)],
        [name for name, values in ratios.items() if values and not any(values)],
        _grid(certificate.drawn.get("rows x width", {})),
    )


def _grid(counts: Mapping[str, int]) -> Grid | None:
    if not counts:
        return None
    pairs = {value: value.partition(" x ") for value in counts}
    cells = {(row, column): counts[value] for value, (row, _, column) in pairs.items()}
    rows = sorted({row for row, _ in cells}, key=in_order)
    columns = sorted({column for _, column in cells}, key=in_order)
    return Grid(rows, columns, cells, max(cells.values()))


def read_codes(record: Certificate | Certificates) -> dict[str, str]:
    """Return the code of the counterexample files that a record names, as far as they can be read."""
    codes = {}
    for certificate in _certificates(record):
        for one in certificate.properties:
            if one.counterexample and Path(one.counterexample).is_file():
                codes[one.counterexample] = Path(one.counterexample).read_text(errors="replace")
    return codes


def render(record: Certificate | Certificates, codes: Mapping[str, str]) -> str:
    """Return the page of a record.

    Args:
        record: of one target or several.
        codes: the code of counterexample files, by the names that the record gives them.
    """
    environment = Environment(
        loader=PackageLoader("verified_losses.properties.show"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_plain,
    )
    template = environment.get_template("report.html.jinja")
    views = [view(certificate) for certificate in _certificates(record)]
    return template.render(
        verdict=record.verdict,
        views=views,
        counts=sum((one.counts for one in views), Counter[str]()),
        codes=codes,
        shortened=shortened,
        as_text=as_text,
        shown_verdict=shown_verdict,
        marks=MARKS,
        axis={
            "width": BAR * (DECADES * PER_DECADE + 2),
            "height": HEIGHT,
            "bar": BAR,
            "ticks": [(BAR * (2 + PER_DECADE * one), one - DECADES) for one in range(DECADES + 1)],
        },
    )


def _certificates(record: Certificate | Certificates) -> list[Certificate]:
    return record.certificates if isinstance(record, Certificates) else [record]


def _plain(value: Any) -> Any:
    return plain(value) if type(value) is str else value
