"""What catches the planted defects: `python -m tests.defects.report`, or `make defects`."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from cyclopts import App, Parameter
from hypothesis.errors import UnsatisfiedAssumption
from rich.console import Console
from rich.table import Table

from verified_losses.properties.cases import Case
from verified_losses.properties.show import drawn
from verified_losses.properties.show.certificate import stamp
from verified_losses.properties.verify.certifier import Check, checks, judged, verify
from verified_losses.properties.worlds.specs import parse

from .. import pretend_cuda
from . import turns
from .index import CUDA, DEFECTS, RIGHT, Planted
from .kinds import index as kinds

WORLDS = "1,sim:2-8,proc:2"
EXAMPLES = 25
"""The defaults of the command."""
MANY = 20
"""Seeds for a defect that is not caught with every one."""

app = App(help=__doc__)


@dataclass(frozen=True)
class Trial:
    """One certification, up to the first property that does not hold."""

    seed: int
    law: str = ""
    """Which one does not hold; empty where all hold."""
    world: str = ""
    examples: int = 0
    """Cases run until then, of all properties."""
    seconds: float = 0.0
    shrunk: str = ""
    """The smallest case found."""
    reason: str = ""
    accident: bool = False
    """It raised where it should have been wrong, or the other way round."""
    smallest: bool = True
    """No smaller case shows what is wrong."""
    drawn: dict[str, int] = field(default_factory=dict)
    """How many of the cases that hold lie in which region."""
    limit: str = ""
    """What the command takes it for, where it is not strict and takes it for no defect."""


@dataclass(frozen=True)
class Result:
    """Of one defect or variant."""

    label: str
    trials: list[Trial]
    catchers: list[str]
    """Every property that does not hold."""


class _Enough(BaseException):
    """A property does not hold, and no smaller case is asked for."""


class _Watch:
    """Counts the cases that a law is checked on, until it does not hold."""

    def __init__(self, check: Any, stop: bool) -> None:
        self.check, self.stop = check, stop
        self.examples = 0
        self.caught_at: float | None = None

    def __call__(self, *arguments: Any) -> float:
        self.examples += self.caught_at is None
        try:
            ratio: float = self.check(*arguments)
        except UnsatisfiedAssumption:
            raise
        except Exception as error:
            self.caught_at = self.caught_at or time.monotonic()
            if self.stop:
                raise _Enough from error
            raise
        return ratio


def _watched(check: Check, stop: bool) -> tuple[Check, _Watch]:
    watch = _Watch(check.law.check, stop)
    return dataclasses.replace(check, law=dataclasses.replace(check.law, check=watch)), watch


def try_once(planted: Planted, seed: int, worlds: str, max_examples: int, turn: int | None = None) -> Trial:
    """Certify as the command does, up to the property that meets the defect.

    With a turn, a variant is asked what tests ask it in that turn.
    """
    started = time.monotonic()
    examples = 0
    held: list[Case] = []
    accident: Trial | None = None
    with _planned(planted, worlds) as planned:
        for check in planned if turn is None else turns.in_turn(turn, planned):
            watched, watch = _watched(check, stop=False)
            finding = verify(watched, max_examples, seed)
            examples += watch.examples
            held += finding.cases
            judgement = judged(finding, max_examples)
            if not planted.wrong:  # what the command takes for a limit accuses nobody
                finding = judgement
            if finding.verdict == "falsified":
                seconds = (watch.caught_at or time.monotonic()) - started
                trial = Trial(
                    seed, finding.law, finding.world, examples, seconds,
                    finding.counterexample, finding.reason, not planted.explains(finding.reason),
                    finding.smallest is not None and planted.is_smallest(finding.smallest.case),
                    drawn.table(held), judgement.limit,
                )  # fmt: skip
                if not trial.accident:
                    return trial
                accident = accident or trial  # what else is wrong does not hide the defect
    return accident or Trial(
        seed, examples=examples, seconds=time.monotonic() - started, drawn=drawn.table(held)
    )


def reason_if_falsified(check: Check, max_examples: int, seed: int) -> str:
    """Return why a check does not hold, or nothing; no smaller case is looked for."""
    try:
        finding = verify(_watched(check, stop=True)[0], max_examples, seed)
    except _Enough as enough:
        return f"{type(enough.__cause__).__name__}: {enough.__cause__}"
    return finding.reason if finding.verdict == "falsified" else ""


def all_catchers(planted: Planted, seed: int, worlds: str, max_examples: int) -> list[str]:
    """Return every property that does not hold."""
    found: list[str] = []
    with _planned(planted, worlds) as planned:
        for check in planned:
            if check.law.name not in found and reason_if_falsified(check, max_examples, seed):
                found.append(check.law.name)
    return found


def _planned(planted: Planted, worlds: str) -> contextlib.AbstractContextManager[Iterable[Check]]:
    """Return what it is asked about: on a CPU in these worlds, or over the stand-in for CUDA."""
    if planted in CUDA:
        return pretend_cuda.checks(planted.id, planted.contract, planted.subject)
    return contextlib.nullcontext(checks({planted.id: (planted.contract, planted.subject)}, parse(worlds)))


def _end_with_parent() -> None:
    """End this process, and with it its worlds, once its parent is gone, whatever ended that."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def examine(
    planted: Planted, seed: int, worlds: str, max_examples: int, every: bool, turn: int | None
) -> Result:
    """Try with a seed, or with as many as it needs; with `every`, find all properties that do not hold."""
    # what it prints is its own affair
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    torch.set_num_threads(1)
    # which the command does while it imports torch, for seconds that are not counted here either
    planted.subject.worlds().start(parse("1")[0])
    if isinstance(planted, kinds.Kind):
        worlds = planted.world  # those that do not gather are verified in one process
    tried = [seed] if planted.seeds == 1 else range(seed, seed + MANY)
    trials = [try_once(planted, one, worlds, max_examples, turn) for one in tried]
    # in real processes a deadlock takes a minute: simulated ones tell at once
    fast = ",".join(part for part in worlds.split(",") if not part.startswith("proc"))
    catchers = all_catchers(planted, seed, fast, max_examples) if every else []
    return Result(planted.id, trials, list(dict.fromkeys([*catchers, *(t.law for t in trials if t.law)])))


@app.default
def report(
    *,
    seed: Annotated[list[int] | None, Parameter(consume_multiple=True)] = None,
    only: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    world: str = WORLDS,
    max_examples: int = EXAMPLES,
    jobs: int = 2,
    every: bool = True,
    resume: bool = False,
    out: Path = Path("build/defects.json"),
) -> int:
    """Certify every planted defect and every right variant, and print which property caught what.

    With the first seed a right variant is asked every property in every world; with each of the others it is
    asked some, each in one world, by turns.

    Exit status: 0 every defect is caught with every seed, or with as many as it says, and no variant is
    accused, else 1.

    Parameters
    ----------
    seed
        Seeds, 0 1 2 if none is given.
    only
        Parts of the ids to look at.
    world
        As for `verified-losses certify`.
    max_examples
        As for `verified-losses certify`.
    jobs
        How many processes.
    every
        Find every property that catches a defect, not the first alone.
    resume
        Keep the results that are there, if they are of the same sources, and try the others.
    out
        Where to write the results.
    """
    seeds = seed or [0, 1, 2]
    everything = [*DEFECTS, *kinds.DEFECTS, *CUDA, *RIGHT, *kinds.RIGHT]
    chosen = [p for p in everything if not only or any(part in p.id for part in only)]
    stamped = stamp()
    kept = json.loads(out.read_text()) if resume and out.exists() else {}
    results = read_results(kept, stamped)
    out.parent.mkdir(parents=True, exist_ok=True)
    console = Console()
    if not console.is_terminal:
        console.width = 140
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.defects.right", "verified_losses.properties.laws.compiled"])

    # targets run in processes of their own, but for those of CUDA, whose stand-in is taken away after each
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_end_with_parent)
    try:
        pending = {}
        for place, each in enumerate(seeds):
            for number, planted in enumerate(chosen):
                if _tried(planted, each, results) or (place and planted.seeds != 1):
                    continue
                all_laws = every and planted.wrong != "" and not place
                turn = number + place if place and not planted.wrong else None
                task = pool.submit(examine, planted, each, world, max_examples, all_laws, turn)
                pending[task] = planted
        for done in as_completed(pending):
            planted = pending[done]
            result = done.result()
            _show(console, planted, result)
            results[planted.id] = _both(results.get(planted.id), result)
            # an interrupt keeps what there is, and waits for what runs alone
            whole = [each for each in seeds if all(_tried(one, each, results) for one in chosen)]
            record = {
                "stamp": stamped, "seeds": whole or seeds[:1], "counts": counted(everything, results),
                "results": [dataclasses.asdict(result) for result in results.values()],
            }  # fmt: skip
            out.write_text(json.dumps(record, indent=1) + "\n")
    finally:
        pool.shutdown(cancel_futures=True)
    return _summarise(console, chosen, results)


def read_results(record: dict[str, Any], stamped: dict[str, str]) -> dict[str, Result]:
    """Return the results in a record, if they are of these sources, and nothing otherwise."""
    if not record or {**record["stamp"], "date": ""} != {**stamped, "date": ""}:
        return {}
    return {result.label: result for result in msgspec.convert(record["results"], list[Result])}


def _tried(planted: Planted, seed: int, results: dict[str, Result]) -> bool:
    trials = results[planted.id].trials if planted.id in results else []
    return any(trial.seed == seed for trial in trials) or (planted.seeds != 1 and bool(trials))


def _both(earlier: Result | None, result: Result) -> Result:
    if earlier is None:
        return result
    catchers = list(dict.fromkeys([*earlier.catchers, *result.catchers]))
    return Result(result.label, [*earlier.trials, *result.trials], catchers)


def _show(console: Console, planted: Planted, result: Result) -> None:
    for trial in result.trials:
        caught = bool(trial.law)
        if not planted.wrong:
            mark = (
                f"ACCUSED by {trial.law}: {trial.reason[-400:]} {trial.shrunk}" if caught else "never accused"
            )
        elif trial.accident:
            mark = f"ACCIDENT, {trial.law}: {trial.reason[-400:]}"
        else:
            limit = f" (a limit: {trial.limit})" if trial.limit else ""
            mark = f"{trial.law}, {trial.world}{limit}" if caught else "NOT CAUGHT"
        console.print(
            f"{result.label:34} seed {trial.seed}  {trial.examples:4} cases {trial.seconds:6.2f} s  {mark}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def table(*names: str, rows: Iterable[tuple[object, ...]]) -> Table:
    """Lay out names, and what belongs to each at the right."""
    laid = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(names):
        laid.add_column(name, justify="right" if number else "left")
    for row in rows:
        laid.add_row(*(str(cell) for cell in row))
    return laid


def is_caught(planted: Planted, result: Result) -> bool:
    """Say whether a defect is caught with as many of its seeds as it says."""
    caught = sum(bool(trial.law) and not trial.accident for trial in result.trials)
    return caught >= planted.seeds * len(result.trials)


def counted(planted: Sequence[Planted], results: dict[str, Result]) -> dict[str, int]:
    """Count what is planted in all, what was tried of it, and what came of that."""
    wrong, right = [one for one in planted if one.wrong], [one for one in planted if not one.wrong]
    defects, variants = ([one for one in all_of if one.id in results] for all_of in (wrong, right))
    accused = [one for one in variants if any(trial.law for trial in results[one.id].trials)]
    return {
        "defects": len(wrong), "tried": len(defects),
        "caught": sum(is_caught(one, results[one.id]) for one in defects),
        "right": len(right), "right_tried": len(variants), "accused": len(accused),
    }  # fmt: skip


def _summarise(console: Console, chosen: Iterable[Planted], results: dict[str, Result]) -> int:
    defects = [planted for planted in chosen if planted.wrong]
    right = [planted for planted in chosen if not planted.wrong]
    trials = [trial for planted in defects for trial in results[planted.id].trials]
    caught = [trial for trial in trials if trial.law and not trial.accident]
    accused = [trial for planted in right for trial in results[planted.id].trials if trial.law]
    firsts = Counter(trial.law for trial in caught)
    everyone = Counter(law for planted in defects for law in results[planted.id].catchers)
    soles = Counter(
        results[planted.id].catchers[0] for planted in defects if len(results[planted.id].catchers) == 1
    )
    regions: Counter[str] = Counter()
    for result in results.values():
        for trial in result.trials:
            regions.update(trial.drawn)
    console.print(table("region", "cases", rows=reversed(regions.most_common())))
    rows = ((law, firsts[law], count, soles[law]) for law, count in everyone.most_common())
    console.print(table("property", "first", "all", "sole", rows=rows))
    if caught:
        times, examples = [trial.seconds for trial in caught], [trial.examples for trial in caught]
        console.print(
            f"caught: {len(caught)} of {len(trials)}; seconds: median {statistics.median(times):.2f}, "
            f"worst {max(times):.2f}; cases: median {statistics.median(examples):.0f}, worst {max(examples)}",
            highlight=False,
        )
    missed = [planted for planted in defects if not is_caught(planted, results[planted.id])]
    for planted in missed:
        console.print(f"not caught: {planted.id}", highlight=False)
    missized = [
        f"{planted.id}, seed {trial.seed}: expected {planted.smallest}, not {trial.shrunk}"
        for planted in defects
        for trial in results[planted.id].trials
        if not trial.smallest
    ]
    for line in missized:
        console.print(f"not the smallest size: {line}", highlight=False)
    console.print(
        f"accused: {len(accused)} of {sum(len(results[p.id].trials) for p in right)} certifications of "
        f"{len(right)} right variants",
        highlight=False,
    )
    return int(bool(missed) or bool(accused) or bool(missized))


if __name__ == "__main__":
    sys.exit(app())
