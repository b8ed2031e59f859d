"""What people get of a training step: a program that shows a defect, and counts of what was drawn."""

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ..laws import Falsified, Place
from ..standalone import launch, steps
from ..standalone.judges import judge_nothing
from ..standalone.step_judges import (
    judge_step_buffer,
    judge_step_fresh,
    judge_step_gradient,
    judge_step_loss,
    judge_step_presence,
    judge_step_ranks,
    judge_step_rng,
    judge_step_scaled,
    judge_step_value,
)
from ..step.laws import LOSS_SCALE
from ..step.verify import StepFinding
from ..worlds import WorldError
from .counterexample import MARK, SECONDS, loader, portable, python, quoted_reason
from .drawn import Drawn, in_order
from .quoting import Quotes
from .text import write_whole

TEMPLATE = Path(__file__).with_name("templates") / "step.py.jinja"
TOLERANCE = "Monte Carlo arithmetic of one process under a dispatch mode: see properties/step/monte_carlo.py"
JUDGES = {
    "gradient": judge_step_gradient,
    "value": judge_step_value,
    "buffer": judge_step_buffer,
    "RNG state": judge_step_rng,
    "logged loss": judge_step_loss,
    "presence of the gradient": judge_step_presence,
    "gradient of rank 0": judge_step_ranks,
    "value of rank 0": judge_step_ranks,
}
OF_LAWS = {"used equals fresh": judge_step_fresh, "loss scale never matters": judge_step_scaled}


def write(finding: StepFinding, folder: Path) -> Path:
    """Write a finding's file into a folder; return its path.

    Raises:
        OSError: the folder cannot be written.
    """
    words = re.sub(r"[^A-Za-z0-9_.]+", "-", f"{finding.loss}-{finding.law}")
    path = folder / f"{words}-{finding.fingerprint}.py"
    write_whole(path, render(finding, path).encode())
    return path


def render(finding: StepFinding, path: Path) -> str:
    """Return the text of a finding's file, which is to lie at `path`."""
    case, error, trainer = finding.smallest, finding.error, finding.check.trainer
    assert case is not None
    place = error.place if isinstance(error, Falsified) and error.place is not None else Place("")
    judge: Any = judge_nothing
    if not isinstance(error, WorldError):
        judge = OF_LAWS.get(finding.law) or JUDGES[place.kind]
    start, gathered = launch.GLOO if case.world_size > 1 else launch.ALONE
    names: dict[str, Callable[..., Any]] = {
        "load": loader(trainer.subject),
        "judge": judge,
        "decide": launch.by_judge,
        "ready": launch.on_cpu,
        "start": start,
        "gathered": gathered,
    }
    launched = case.world_size > 1 or judge is judge_nothing
    quotes = Quotes()
    acts = quotes.source(steps.run_steps)
    judged = quotes.source(judge)
    run = quotes.source(launch.launched if launched else launch.verdict)
    run += "\n\n\n" + quotes.source(*(one for name, one in names.items() if name in quotes.given))
    known = {
        "NAME": (place.name, "the parameter"),
        "RANK": (place.rank or 0, ""),
        "STEP": (_step(place), "from 0"),
        "INDEX": (place.index, ""),
        "KIND": (place.kind, ""),
        "IS_DUE": (place.expected == "one", "whether it is to have a gradient"),
        "LOSS_SCALE": (LOSS_SCALE, "what the initial scale is multiplied with"),
        "BOUND": (
            float(f"{place.bound:.4g}"), "how far rounding may take a right trainer: sampled for this case",
        ),
    }  # fmt: skip
    template = jinja2.Template(
        TEMPLATE.read_text(), trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    plan = case.plan(trainer, launched=False)._asdict()
    del plan["launched"], plan["loss_scale"]
    if not plan["constant"]:
        del plan["constant"]
    ranks = "one process" if case.world_size == 1 else f"{case.world_size} ranks"
    text = template.render(
        python=python,
        mark=f"{MARK} {finding.fingerprint}",
        title=f'{finding.loss}: "{finding.law}" does not hold in {ranks}.',
        reason=quoted_reason("\n".join(filter(None, [finding.reason, finding.module]))),
        file_name=path.name,
        world_size=case.world_size,
        imports=sorted(quotes.imports | {"import os", "import sys"}),
        target=portable(trainer.subject.target),
        home=os.path.relpath(Path.cwd(), path.parent),
        seconds=SECONDS,
        constants={name: value for name, value in known.items() if name in quotes.given},
        plan=", ".join(f"{name}={python(value)}" for name, value in plan.items()),
        acts=acts,
        judged=judged,
        run=run,
        names={name: value.__name__ for name, value in names.items() if name in quotes.given},
        main="launched()" if launched else "verdict(0)",
    )  # fmt: skip
    return re.sub(r"\n{4,}", "\n\n\n", text)


def _step(place: Place) -> int:
    found = re.search(r"after step (\d+)", place.note)
    return int(found[1]) - 1 if found else -1


def drawn(findings: Sequence[StepFinding]) -> Drawn:
    """Count the cases that were checked, by what was drawn."""
    counts: dict[str, Counter[str]] = {"world": Counter()}
    for finding in findings:
        for case in finding.cases:
            facets = {
                "world": finding.world, "ranks": case.world_size, "micro-batches": len(case.rows[0]),
                "rows": sum(map(sum, case.rows)), "dtype": case.dtype, "steps": case.steps,
                "frozen parameters": len(case.frozen),
            }  # fmt: skip
            for name, value in facets.items():
                counts.setdefault(name, Counter())[str(value)] += 1
    return {
        name: {one: values[one] for one in sorted(values, key=in_order)} for name, values in counts.items()
    }
