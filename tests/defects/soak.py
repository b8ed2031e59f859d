"""Looks for false alarms: `python -m tests.defects.soak --minutes 30`, or `make soak MINUTES=30`.

Shipped losses and right variants are certified with one seed after another. None may be accused, and the same
seed must give the same verdict and the same errors again.
"""

import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from cyclopts import App
from rich.console import Console

from verified_losses.properties.show.certificate import stamp
from verified_losses.properties.show.counterexample import write
from verified_losses.properties.subjects import SHIPPED
from verified_losses.properties.verify.certifier import Check, checks, judged, verify
from verified_losses.properties.worlds.specs import parse

from .index import RIGHT
from .kinds import index as kinds
from .report import table

AGAIN = 10
"""One check in so many is run a second time."""
QUANTILES = (50, 90, 99, 100)

app = App(help=__doc__)


def endless(worlds: str, seed: int) -> Iterator[tuple[Check, int]]:
    """Yield every check of every right subject, in a drawn order, with one seed after another."""
    variants = [*RIGHT, *kinds.RIGHT]
    subjects = SHIPPED | {right.id: (right.contract, right.subject) for right in variants}
    # one that states what it does with some inputs says nothing of others
    stated = {right.id: right.asked for right in variants if right.stated}
    while True:
        order = list(subjects)
        random.Random(seed).shuffle(order)
        for label in order:
            for check in checks({label: subjects[label]}, parse(worlds)):
                if check.law.name in stated.get(label, [check.law.name]):
                    yield check, seed
        seed += 1


@app.default
def soak(
    *,
    minutes: float = 30,
    seed: int | None = None,
    world: str = "1,sim:2-8,proc:2",
    max_examples: int = 25,
    out: Path = Path("build/soak.json"),
) -> int:
    """Certify what is right until the time is over.

    Exit status: 0 nothing was accused and every verdict came out the same again, else 1.

    Parameters
    ----------
    minutes
        How long.
    seed
        The first; drawn from the clock, and printed, if not given.
    world
        As for `verified-losses certify`.
    max_examples
        As for `verified-losses certify`.
    out
        Where to write every verdict, and the errors over bounds of every property and dtype.
    """
    first = int(time.time()) % 2**20 if seed is None else seed
    console = Console(emoji=False, soft_wrap=True, highlight=False)
    console.print(f"seed {first}")
    stamped = stamp()
    deadline = time.monotonic() + 60 * minutes
    ratios: dict[str, list[float]] = {}
    verdicts: dict[str, str] = {}
    wrong = 0
    for check, drawn in endless(world, first):
        if time.monotonic() > deadline:
            break
        finding = verify(check, max_examples, drawn)
        judgement = judged(finding, max_examples)  # what the command takes for a limit accuses nobody
        what = f"{check.label}, {check.law.name}, {check.world.name}, seed {drawn}"
        verdicts[what] = judgement.verdict
        for case, ratio in zip(finding.cases, finding.ratios, strict=True):
            ratios.setdefault(f"{check.law.name}, {case.dtype}", []).append(ratio)
        if judgement.verdict == "falsified":
            wrong += 1
            console.print(f"ACCUSED {what}: {judgement.reason}\n{judgement.counterexample}", markup=False)
            console.print(f"run: python {write(judgement, out.parent / 'counterexamples')}", markup=False)
        elif len(verdicts) % AGAIN == 0:
            again = verify(check, max_examples, drawn)
            if (again.verdict, again.ratios) != (finding.verdict, finding.ratios):
                wrong += 1
                console.print(f"NOT THE SAME AGAIN {what}: {again.verdict} {again.reason}", markup=False)
    rows = (
        (name, len(seen), *(f"{value:.2g}" for value in np.percentile(seen, QUANTILES)))
        for name, seen in sorted(ratios.items())
        if any(seen)  # else the law compares bits or types
    )
    heads = [f"{quantile} %" for quantile in QUANTILES]
    console.print("error/bound, quantiles:", table("property", "cases", *heads, rows=rows))
    console.print(f"{wrong} of {len(verdicts)} checks wrong, seeds from {first}")
    out.parent.mkdir(parents=True, exist_ok=True)
    said = {"seed": first, "minutes": minutes, "wrong": wrong, "verdicts": verdicts, "ratios": ratios}
    out.write_text(json.dumps({"stamp": stamped, **said}) + "\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(app())
