"""Terminal output: the table of the checks, and the defects."""

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..devices import CPU, asks_for_cuda
from ..laws import TRAINING, Falsified
from ..step.verify import StepFinding
from ..subjects import Subject
from ..verify.certifier import Finding
from ..verify.concerns import CONCERNS
from ..verify.hints import Hint
from ..verify.known import Known, Told
from ..verify.limits import WORDS, words
from ..worlds import WorldError
from ..worlds.simulated import SimulationError
from .certificate import Device
from .defects import AnyFinding, Defect, ranked
from .forms import defaults_of
from .text import as_text, plain, shortened


def table(findings: Sequence[Told], known: Known) -> Table:
    """Lay out one line a check."""
    laid = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for name in ("loss", "property", "world"):
        laid.add_column(name, overflow="fold")
    laid.add_column("examples", justify="right", no_wrap=True)
    laid.add_column("error/bound", justify="right", no_wrap=True)
    laid.add_column("verdict", no_wrap=True)
    for finding in findings:
        verdict = "known" if known.reason(finding) else finding.verdict
        colour = {"holds": "green", "falsified": "bold red"}.get(verdict, "yellow")
        ratio = as_text(finding.worst_error_over_bound)
        laid.add_row(
            escape(finding.loss), finding.law, finding.world, str(finding.examples),
            ratio if finding.verdict in ("holds", "limit") else "", f"[{colour}]{verdict}[/]",
        )  # fmt: skip
    return laid


def loaded(subjects: Iterable[Subject]) -> list[str]:
    """Return what stood in the place of something else as targets were loaded."""
    given = list(subjects)
    stubs = dict.fromkeys(name for subject in given for name in subject.stubbed)
    lines = [f"stubbed: {', '.join(stubs)} (not installed)"] if stubs else []
    return lines + ["interpreted: Triton kernels run on the CPU"] * any(one.interpret for one in given)


def devices(used: Sequence[Device]) -> list[str]:
    """Return a line for each device on which something was to run; nothing where that is the CPU alone."""
    asked_for = [one for one in used if one.verdict != "not verified"]
    if [one.device for one in asked_for] == [CPU]:
        return []
    lines = []
    for one in asked_for:
        software = [("driver", one.driver), ("CUDA", one.cuda), ("NCCL", one.nccl)]
        named = [
            one.name,
            f"torch {one.torch}",
            *(f"{what} {version}" for what, version in software if version),
        ]
        lines.append(f"{one.device} ({', '.join(named)}): {one.verdict}")
        lines += [f"{one.device}: {note}" for note in one.notes]
    return lines


def show(console: Console, defects: Sequence[Defect], known: Known) -> None:
    """Print every defect that is not accepted, with its smallest counterexample, by whom it concerns."""
    last = ""
    for defect in ranked(defects):
        if not accepted(defect, known):
            if defect.concern != last:
                last = defect.concern
                console.print(f"\n[bold]{escape(heading(last, '--'))}[/]", highlight=False)
            what, *why, file = explained(defect, "--").split("\n")
            console.print(f"\n[bold red]{escape(what)}[/]")
            console.print(escape("\n".join(why)), highlight=False)
            console.print(escape(file), soft_wrap=True, highlight=False)


def heading(name: str, prefix: str) -> str:
    """Return what stands over the defects of a concern: whom they concern, and how to accept them.

    Args:
        name: of the concern.
        prefix: how arguments are named, as for `explained`.
    """
    concern = CONCERNS[name]
    if name == TRAINING:
        return f"{concern.heading}:"
    ways = [f"an entry in the file of {prefix}known"] if prefix else []
    if concern.skip:
        names = list(concern.skip)
        ways.insert(0, f"{prefix}skip {' '.join(map(repr, names))}" if prefix else f"skip={names}")
    if concern.config:
        option, _, value = concern.config.partition("=")
        given = f"config={{{option!r}: {value.title()}}}"
        ways.insert(0, f"{prefix}config {concern.config}" if prefix else given)
    how = f" (to accept it: {', or '.join(ways)})" if ways else ""
    return f"{concern.heading}{how}:"


def limits(findings: Sequence[AnyFinding], prefix: str) -> list[str]:
    """Return what targets do not support, where that is no defect, and how to have it judged.

    Args:
        findings: of all targets.
        prefix: how arguments are named, as for `explained`.
    """
    met: dict[tuple[str, str], list[AnyFinding]] = {}
    for finding in findings:
        if finding.limit:
            met.setdefault((finding.loss, finding.limit), []).append(finding)
    if not met:
        return []
    lines = [f"limits, which are no defects unless {_argument('strict', True, prefix)}:"]
    for (loss, name), (first, *others) in met.items():
        also = f" and {len(others)} more" if others else ""
        lines += [
            f"{loss}: {words(name)}{'' if name in WORDS else f': {how(first.error, first.reason)}'}",
            f"  met by {first.law} in world {first.world}{also}: {how(first.error, first.reason)}",
            f"  smallest case: {first.counterexample}",
        ]
    return lines


def accepted(defect: Defect, known: Known) -> bool:
    """Whether all that a defect explains is known."""
    return all(known.reason(finding) for finding in (defect.leader, *defect.others))


def headline(finding: AnyFinding) -> str:
    """Return what does not hold, and how, in a line."""
    return f"{finding.loss}: {finding.law} in world {finding.world}: {how(finding.error, finding.reason)}"


def how(error: Exception | None, reason: str) -> str:
    """Return what a law raised, in a line."""
    said = reason
    if isinstance(error, Falsified):
        said = str(error)
    elif isinstance(error, SimulationError) and error.finding != "raised":
        said = f"{error.finding}: {error.message}"
    elif isinstance(error, WorldError):
        said = next(state for state in error.ranks if state.state != "returned").said
    return shortened(plain(said)).partition("\n")[0]


def explained(defect: Defect, prefix: str) -> str:
    """Return the finding in one line, then the reason and the smallest case; the last line names the file.

    Args:
        defect: what is wrong.
        prefix: how hints name arguments: as options that begin so, or, where it is empty, as in code.
    """
    leader = defect.leader
    lines = [
        f"{leader.loss}: {leader.law} does not hold in world {leader.world}",
        shortened(plain(leader.reason)),
    ]
    if isinstance(leader, StepFinding) and leader.module:
        lines.append(leader.module)
    if leader.counterexample:
        lines.append(f"smallest case: {leader.counterexample}")
    if isinstance(leader, Finding) and (left := defaults_of(leader.check.subject)):
        lines.append(left)
    if defect.others:
        also = ", ".join(f"{other.law} ({other.world})" for other in defect.others)
        lines.append(f"the same defect: {also}")
    if isinstance(leader, Finding):
        lines += [f"hint: {hint}" for hint in hints(leader, prefix)]
    lines.append(f"run: python {defect.file}" if defect.file else f"no file was written: {defect.trouble}")
    return "\n".join(lines)


def hints(finding: Finding, prefix: str) -> list[str]:
    """Return the explanations of a finding other than a defect."""
    if finding.smallest is None:
        return []
    case, found = finding.smallest.case, []
    if asks_for_cuda(case.device, finding.reason):
        asked = _argument("device", "cuda", prefix)
        found.append(f"the target asks for CUDA: where there is a GPU, {asked} verifies it there")
    if finding.hints:
        raised = any(place is None for _, place in finding.met)
        where = "in every case that fails" + " and raises nothing" * raised
        found.append(_worded(finding.hints, where, prefix))
    if case.world_size == 1:
        return found
    place = finding.error.place if isinstance(finding.error, Falsified) else None
    exact = case.convention == "exact"
    if place and place.kind == "gradient" and exact and case.option("gather_with_grad", True) is False:
        upstream = _argument("convention", "open_clip", prefix)
        found.append(f"if it is to have upstream's gradients without gather_with_grad: {upstream}")
    if len(set(case.rows)) > 1:
        found.append(f"if its ranks always hold equally many rows: {_argument('equal_rows', True, prefix)}")
    return found


TIMES = {
    "2": "2", "1/2": "half", "W": "the number of ranks", "1/W": "1 over the number of ranks",
    "n": "the number of rows", "1/n": "1 over the number of rows",
}  # fmt: skip
MEANT = {
    "2": ("the sum of both directions", "target(...) / 2"),
    "1/2": ("half of the sum", "2 * target(...)"),
    "n": ("a sum over rows", ""),
    "1/n": ("a mean over rows of a mean over rows", ""),
    "W": ("multiplied by the number of ranks, as where gradients are averaged", ""),
}
"""What a loss may be meant to be, by its factor, and the expression that states it."""


def _worded(hints: Sequence[Hint], where: str, prefix: str) -> str:
    """Return hints of one finding in words; several of them are one number in the cases that were met."""
    first = hints[0]
    if first.kind == "times":
        number = ", which is ".join(TIMES[hint.factor] for hint in hints)
        said = f"{where}, the {first.what} is exactly {number} times the oracle's"
        meant, expression = MEANT.get(first.factor, ("", "")) if len(hints) == 1 else ("", "")
        if expression:
            return f"{said}: if the loss is to be {meant}, state it: {_argument('call', expression, prefix)}"
        return f"{said}, as of {meant}" if meant else said
    if first.kind == "alone":
        return f"met {first.what} alone: {first.factor} cases elsewhere hold"
    said = f"{where}, the {first.what} is right"
    if first.kind == "entropy":
        return f"{said} but for the teacher's entropy: this is the KL divergence, not the cross-entropy"
    if first.kind == "offset":
        wrong = f"{where}, the {first.what} is that of labels that begin at 0 on every rank"
        return f"{wrong}; the first label of a rank is to be the number of rows on the ranks before it"
    if first.kind == "normalized":
        given = _argument("features", "normalized", prefix)
        return f"{said} if rows are normalised first: if the loss is to normalise them, {given}"
    if first.kind == "raw":
        given = _argument("features", "raw", prefix)
        return f"{said} if rows are not normalised: if the loss is to take them as they are, {given}"
    ((name, value),) = first.config
    option = f"{prefix}config {name}={str(value).lower()}" if prefix else f"config={{{name!r}: {value}}}"
    return f"{said} with {option}"


def _argument(name: str, value: Any, prefix: str) -> str:
    """Return an argument as it is given: an option that begins with `prefix`, or, without one, in code."""
    if not prefix:
        return f'{name}="{value}"' if isinstance(value, str) else f"{name}={value!r}"
    option = f"{prefix}{name.replace('_', '-')}"
    return option if value is True else f"{option} {shlex.quote(str(value))}"
