"""What people see and keep: the table on the terminal, and the certificate."""

import contextlib
import hashlib
import importlib.util
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .certify import Finding
from .subjects import Subject

CERTIFICATE_VERSION = 1


class Certificate(msgspec.Struct, frozen=True):
    """The record of what was verified, and with what."""

    version: int
    verdict: str
    """"holds", "falsified", or "incomplete" where the run was interrupted."""
    seed: int
    max_examples: int
    worlds: str
    sources: dict[str, str]
    """SHA-256 of the source file that each loss was imported from."""
    versions: dict[str, str]
    properties: list[Finding]
    not_verified: list[str]
    """What did not run, and why."""


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
    findings: Sequence[Finding],
    subjects: dict[str, tuple[str, Subject]],
    seed: int,
    max_examples: int,
    worlds: str,
    not_verified: list[str],
    complete: bool,
) -> Certificate:
    """Assemble the record of a run; one that was cut short certifies nothing."""
    verdict = "holds" if complete else "incomplete"
    if any(finding.verdict == "falsified" for finding in findings):
        verdict = "falsified"
    return Certificate(
        CERTIFICATE_VERSION,
        verdict,
        seed,
        max_examples,
        worlds,
        {name: source_hash(subject) for name, (_, subject) in subjects.items()},
        versions(),
        list(findings),
        not_verified,
    )


def write(record: Certificate, path: Path) -> None:
    """Write a certificate as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def table(findings: Sequence[Finding]) -> Table:
    """Lay out one line a check."""
    laid = Table(box=None, pad_edge=False, header_style="bold")
    columns: list[tuple[str, dict[str, Any]]] = [
        ("loss", {}), ("property", {}), ("world", {}),
        ("examples", {"justify": "right"}), ("error/bound", {"justify": "right"}), ("verdict", {}),
    ]  # fmt: skip
    for name, style in columns:
        laid.add_column(name, no_wrap=True, **style)
    for finding in findings:
        colour = {"holds": "green", "falsified": "bold red", "skipped": "yellow"}[finding.verdict]
        ratio = f"{finding.worst_error_over_bound:.3f}" if finding.worst_error_over_bound else "exact"
        laid.add_row(
            finding.loss, finding.property, finding.world, str(finding.examples),
            ratio if finding.verdict == "holds" else "", f"[{colour}]{finding.verdict}[/]",
        )  # fmt: skip
    return laid


def show_falsified(console: Console, findings: Sequence[Finding]) -> None:
    """Print every falsified check with its smallest counterexample."""
    for finding in findings:
        if finding.verdict == "falsified":
            console.print(
                f"\n[bold red]{finding.loss}: {finding.property}[/] does not hold in world {finding.world}"
            )
            console.print(escape(finding.reason), soft_wrap=True, highlight=False)
            console.print(f"smallest case: {escape(finding.counterexample)}", soft_wrap=True, highlight=False)
