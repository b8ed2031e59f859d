"""Terminal output: the table of the checks, and the defects."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..devices import CPU, asks_for_cuda
from ..laws import Falsified
from ..subjects import Subject
from ..verify.certifier import Finding
from ..verify.known import Known
from ..worlds import WorldError
from ..worlds.simulated import SimulationError
from .certificate import Device
from .defects import Defect
from .text import as_text, plain, shortened


def table(findings: Sequence[Finding], known: Known) -> Table:
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
            ratio if finding.verdict == "holds" else "", f"[{colour}]{verdict}[/]",
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
    """Print every defect that is not accepted, with its smallest counterexample."""
    for defect in defects:
        if not accepted(defect, known):
            what, *why, file = explained(defect, "--").split("\n")
            console.print(f"\n[bold red]{escape(what)}[/]")
            console.print(escape("\n".join(why)), highlight=False)
            console.print(escape(file), soft_wrap=True, highlight=False)


def accepted(defect: Defect, known: Known) -> bool:
    """Whether all that a defect explains is known."""
    return all(known.reason(finding) for finding in (defect.leader, *defect.others))


def headline(finding: Finding) -> str:
    """Return what does not hold, and how, in a line."""
    error, how = finding.error, finding.reason
    if isinstance(error, Falsified):
        how = str(error)
    elif isinstance(error, SimulationError) and error.finding != "raised":
        how = f"{error.finding}: {error.message}"
    elif isinstance(error, WorldError):
        how = next(state for state in error.ranks if state.state != "returned").said
    how = shortened(plain(how)).partition("\n")[0]
    return f"{finding.loss}: {finding.law} in world {finding.world}: {how}"


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
        f"smallest case: {leader.counterexample}",
    ]
    if defect.others:
        also = ", ".join(f"{other.law} ({other.world})" for other in defect.others)
        lines.append(f"the same defect: {also}")
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


def _argument(name: str, value: Any, prefix: str) -> str:
    """Return an argument as it is given: an option that begins with `prefix`, or, without one, in code."""
    if not prefix:
        return f'{name}="{value}"' if isinstance(value, str) else f"{name}={value!r}"
    option = f"{prefix}{name.replace('_', '-')}"
    return option if value is True else f"{option} {value}"
