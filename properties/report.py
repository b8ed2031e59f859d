"""What people see and keep: the table on the terminal, and the certificate."""

import contextlib
import hashlib
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .certifier import Finding, Verdict, compared
from .drawn import Drawn, count
from .grouping import Defect
from .known import Known
from .laws import Falsified
from .subjects import Subject

CERTIFICATE_VERSION = 2
HERE = str(Path(__file__).parent)
LEADING = (
    "torch/nn/modules/module.py",
    "<frozen importlib._bootstrap>",
    "<frozen importlib._bootstrap_external>",
)
"""Files whose frames lead from here to a target, besides our own."""
PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
"""Of control characters: what is shown in their place."""
REASON_LINES = 12
"""Of a reason on the terminal; the certificate has all."""
LINE = 600
"""Characters of a line of a reason on the terminal."""


class Property(msgspec.Struct, frozen=True):
    """One law in one world."""

    property: str
    world: str
    examples: int
    verdict: Verdict
    worst_error_over_bound: float
    """Of the cases that hold."""
    reason: str
    """Why it was falsified or skipped."""
    fingerprint: str
    """Names the defect; empty where the law holds."""
    counterexample: str | None
    """The file to run, which findings of one defect share; None where the law holds."""
    case: str
    """The smallest case found that falsifies it."""
    known: str
    """Why this finding is accepted; empty where it is not."""
    seconds: float
    errors_over_bound: list[float]
    """Of every case that holds."""


class Certificate(msgspec.Struct, frozen=True):
    """The record of what was verified of one target, and with what."""

    version: int
    target: str
    contract: str
    convention: str
    verdict: Literal["holds", "falsified", "incomplete"]
    """"incomplete" where nothing is falsified, and something that was asked for did not run."""
    properties: list[Property]
    versions: dict[str, str]
    seed: int
    max_examples: int
    worlds: str
    source: str
    """SHA-256 of the source that the target was imported from."""
    not_verified: list[str]
    """What did not run, and why."""
    drawn: Drawn
    """What the cases were: of every field, each value, and in how many cases."""
    command: str
    """What was typed; empty where it was asked for in code."""


class Certificates(msgspec.Struct, frozen=True):
    """The records of several targets that were verified together."""

    version: int
    verdict: Literal["holds", "falsified", "incomplete"]
    certificates: list[Certificate]


@dataclass(frozen=True)
class Asked:
    """What a run was asked for."""

    seed: int
    max_examples: int
    worlds: str
    command: str = ""


def schema() -> dict[str, Any]:
    """Return the JSON schema of what `write` writes."""
    (one, several), parts = msgspec.json.schema_components(
        [Certificate, Certificates], ref_template="#/$defs/{name}"
    )
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": draft, "title": "Certificate", "anyOf": [one, several], "$defs": parts}


def source_hash(subject: Subject) -> str:
    """Return the SHA-256 of all the source of the package, or of the file, that a subject comes from."""
    module_name = subject.target.rpartition(":")[0]
    if module_name.endswith(".py"):
        files = [Path(module_name)]
    else:
        spec = importlib.util.find_spec(module_name.partition(".")[0])
        origin = Path(spec.origin) if spec and spec.origin else None
        files = [] if origin is None else sorted(origin.parent.rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that a verdict depends on."""
    packages = {name: metadata.version(name) for name in ("torch", "numpy", "hypothesis")}
    with contextlib.suppress(metadata.PackageNotFoundError):
        packages["horovod"] = metadata.version("horovod")
    return {**packages, "python": platform.python_version(), "platform": sys.platform}


def certificate(
    subject: Subject,
    contract: str,
    findings: Sequence[Finding],
    defects: Sequence[Defect],
    asked: Asked,
    known: Known,
    not_verified: Sequence[str],
    complete: bool,
) -> Certificate:
    """Assemble the record of one target."""
    named: dict[int, tuple[str, str | None]] = {
        id(finding): (defect.leader.fingerprint, str(defect.file) if defect.file else None)
        for defect in defects
        for finding in (defect.leader, *defect.others)
    }
    properties = [
        Property(
            finding.law,
            finding.world,
            finding.examples,
            finding.verdict,
            finding.worst_error_over_bound,
            plain(finding.reason),
            *named.get(id(finding), ("", None)),
            finding.counterexample,
            plain(known.reason(finding)),
            round(finding.seconds, 3),
            [float(f"{ratio:.3g}") for ratio in finding.ratios],
        )
        for finding in findings
    ]
    verdict: Literal["holds", "falsified", "incomplete"] = "holds"
    if any(one.verdict == "falsified" and not one.known for one in properties):
        verdict = "falsified"
    elif not complete or any(finding.not_run for finding in findings):
        verdict = "incomplete"
    return Certificate(
        CERTIFICATE_VERSION,
        plain(subject.target),
        contract,
        " and ".join(subject.conventions),
        verdict,
        properties,
        versions(),
        asked.seed,
        asked.max_examples,
        asked.worlds,
        source_hash(subject),
        list(not_verified),
        count(findings),
        plain(asked.command),
    )


def together(certificates: Sequence[Certificate]) -> Certificate | Certificates:
    """Return what is written of a run: of one target its certificate, of several all of them."""
    if len(certificates) == 1:
        return certificates[0]
    verdicts = {one.verdict for one in certificates}
    verdict = next((bad for bad in ("falsified", "incomplete") if bad in verdicts), "holds")
    return Certificates(CERTIFICATE_VERSION, verdict, list(certificates))  # type: ignore[arg-type]


def write(record: Certificate | Certificates, path: Path) -> None:
    """Write a record as JSON.

    Raises:
        OSError: it cannot be written there.
    """
    write_whole(path, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def decode(text: bytes) -> Certificate | Certificates:
    """Return the record that JSON holds.

    Raises:
        msgspec.DecodeError: it holds none.
    """
    fields = msgspec.json.decode(text, type=dict[str, Any])
    if "certificates" in fields:
        return msgspec.convert(fields, Certificates)
    return msgspec.convert(fields, Certificate)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file: all of it, or nothing.

    Raises:
        OSError: it cannot be written there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def plain(text: str) -> str:
    """Return text of a target's without what would steer a terminal or cannot be written."""
    return text.encode(errors="backslashreplace").decode().translate(PICTURES)


def as_text(ratio: float) -> str:
    """Return an error over its bound as people read it."""
    if not ratio:
        return "exact"
    return f"{ratio:.3f}" if ratio >= 0.001 else f"{ratio:.0e}"


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


def show(console: Console, defects: Sequence[Defect], known: Known) -> None:
    """Print every defect with its smallest counterexample."""
    for defect in defects:
        if not known.reason(defect.leader):
            what, *why, file = explained(defect).split("\n")
            console.print(f"\n[bold red]{escape(what)}[/]")
            console.print(escape("\n".join(why)), highlight=False)
            console.print(escape(file), soft_wrap=True, highlight=False)


def explained(defect: Defect) -> str:
    """Return what is wrong, in a line; below it why, and the smallest case; in the last, the file to run."""
    leader = defect.leader
    lines = [
        f"{leader.loss}: {leader.law} does not hold in world {leader.world}",
        shortened(plain(leader.reason)),
        f"smallest case: {leader.counterexample}",
    ]
    if defect.others:
        also = ", ".join(f"{other.law} ({other.world})" for other in defect.others)
        lines.append(f"the same defect: {also}")
    lines += [f"hint: {hint}" for hint in hints(leader)]
    lines.append(f"run: python {defect.file}" if defect.file else f"no file was written: {defect.trouble}")
    return "\n".join(lines)


def hints(finding: Finding) -> list[str]:
    """Return what else a finding may mean than a defect."""
    if finding.smallest is None or (case := compared(finding.smallest)).world_size == 1:
        return []
    found = []
    place = finding.error.place if isinstance(finding.error, Falsified) else None
    exact = case.convention == "exact"
    if place and place.kind == "gradient" and exact and case.option("gather_with_grad", True) is False:
        found.append("if it is to have upstream's gradients without gather_with_grad: --convention open_clip")
    if len(set(case.rows)) > 1:
        found.append("if its ranks always hold equally many rows: --equal-rows")
    return found


def shortened(reason: str) -> str:
    """Return a reason without the frames that lead from here to the target, and without a long middle."""
    lines = [
        line if len(line) <= LINE else f"{line[:LINE]} ... {len(line) - LINE} characters ..."
        for line in own(reason).splitlines()
    ]
    if len(lines) > REASON_LINES:
        half = REASON_LINES // 2
        lines[half:-half] = [f"... {len(lines) - 2 * half} lines ..."]
    return "\n".join(lines)


def own(reason: str) -> str:
    """Return a reason without the frames of a traceback that lead from here to the target."""
    lines: list[str] = []
    ours = False
    for line in reason.splitlines():
        if frame := re.match(r' +File "(.+?)", line \d+', line):
            ours = frame[1].startswith(HERE) or frame[1].endswith(LEADING)
        elif not line.startswith("    "):
            ours = False
        if not ours and not re.fullmatch(r"[ ~^]+", line):
            lines.append(line)
    return "\n".join(lines)
