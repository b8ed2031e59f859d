"""The certificate: the record of what was verified, and with what."""

import contextlib
import hashlib
import importlib.util
import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import msgspec

import verified_losses

from .. import devices
from ..contracts import contract_of
from ..names import values_of
from ..own.formula import is_own
from ..step.target import Trainer
from ..step.verify import StepCheck, StepFinding
from ..subjects import SHIPPED, Subject, Target
from ..verify import concerns
from ..verify.certifier import Check, Finding, Verdict
from ..verify.fingerprints import fingerprint
from ..verify.known import Known, Told
from ..verify.plan import takers
from ..verify.shards import Shard
from ..worlds import probe
from . import step
from .defects import AnyFinding, Defect
from .drawn import Drawn, count
from .forms import described
from .text import plain, write_whole

CERTIFICATE_VERSION = 5
SUITE = ("oracles", "properties")
"""Folders of this package that are the suite, and no part of the losses."""


class Property(msgspec.Struct, frozen=True):
    """One law in one world."""

    property: str
    world: str
    device: str
    """Where the tensors were, or the devices that ranks had in turn."""
    examples: int
    verdict: Verdict
    worst_error_over_bound: float
    """Of the cases that hold."""
    reason: str
    """Why it was falsified or skipped; of what holds, what it was not asked."""
    fingerprint: str
    """Names the defect; empty where the law holds."""
    counterexample: str | None
    """The file to run, which findings of one defect share; None where the law holds."""
    case: str
    """The smallest case found that falsifies it, or shows the limit."""
    known: str
    """Why this finding is accepted; empty where it is not."""
    seconds: float
    errors_over_bound: list[float]
    """Of every case that holds; of very many, of a fuzz run, a sample that holds the worst."""
    limit: str = ""
    """What the target does not support, where that is no defect: "limit" is then the verdict."""
    concern: str = ""
    """Whom it concerns where it is falsified: "training" is everyone who trains."""


class Planned(msgspec.Struct, frozen=True):
    """One law in one world, and which shard verifies it."""

    property: str
    world: str
    shard: int
    """From 1."""


class Found(msgspec.Struct, frozen=True):
    """A finding of a shard, as it takes to tell whether one defect explains it and those of other shards."""

    property: str
    world: str
    fingerprint: str
    """Its own, where `Property.fingerprint` names the defect that explains several."""
    example: str
    """The smallest that falsifies it, as JSON."""


class Part(msgspec.Struct, frozen=True):
    """Which shard of a run a certificate is of. Its verdict is that of its own checks."""

    index: int
    """From 1."""
    count: int
    label: str
    """The target's name in reports."""
    subject: Subject
    """What was asked of the target."""
    checks: list[Planned]
    """All checks of the target, in order; empty where every shard verifies all, over cases of its own."""
    found: list[Found]
    not_verified: list[str]
    """Those lines of the certificate that are of this shard alone."""
    trainer: Trainer | None = None
    """What was asked of a target that makes a training step."""

    @property
    def others(self) -> list[Planned]:
        """The checks of the other shards."""
        return [one for one in self.checks if one.shard != self.index]


class Device(msgspec.Struct, frozen=True):
    """A device: what it is, and what was verified there."""

    device: str
    name: str
    """That of its maker; empty where it was not looked at."""
    driver: str
    """The driver's version; empty for the CPU."""
    torch: str
    """The build of torch."""
    cuda: str
    """The version of CUDA that torch is built with; empty for the CPU."""
    nccl: str
    """The version of NCCL that torch is built with; empty for the CPU."""
    worlds: list[str]
    """In which something ran there."""
    verdict: Literal["holds", "falsified", "incomplete", "not verified"]
    """"not verified" where nothing was to run there."""
    notes: list[str]
    """Why something did not run there, and where ranks were put."""


class Issuer(msgspec.Struct, frozen=True):
    """The suite that issued a certificate."""

    version: str
    oracles: str
    """SHA-256 of the source of `oracles`."""
    properties: str
    """SHA-256 of the source of `properties`."""


class Certificate(msgspec.Struct, frozen=True):
    """The record of what was verified of one target, and with what."""

    version: int
    target: str
    contract: str
    convention: str
    """Those that cases were drawn of; empty where the contract has none."""
    verdict: Literal["holds", "falsified", "incomplete"]
    """"incomplete" where nothing is falsified, and something that was asked for did not run."""
    properties: list[Property]
    versions: dict[str, str]
    seed: int
    max_examples: int
    worlds: str
    devices: list[Device]
    source: str
    """SHA-256 of the target's source: its file, or all of its top-level package."""
    issuer: Issuer
    not_verified: list[str]
    """The checks that did not run, and why."""
    drawn: Drawn
    """For every field of a case: its values, and in how many cases each was drawn."""
    command: str
    """The command line; empty if the run was started from code."""
    shard: Part | None = None
    """None for a whole run, and for shards that were merged."""
    form: list[str] = []
    """How the target is called, and what it does with rows, in words."""
    stubbed: list[str] = []
    """The packages that the target imports, that are not installed, and that stubs stood for."""
    interpreted: bool = False
    """Whether its Triton kernels ran in Triton's interpreter."""
    limits: list[str] = []
    """What the target does not support, where it was not judged strictly."""
    contract_source: str = ""
    """Of a formula, SHA-256 of the file that it is in."""
    tolerance: str = ""
    """Of a formula, where its tolerances come from; others are derived by hand."""
    date: str = ""
    """The day, in UTC, on which it was written; of merged shards, that of the first."""


class Certificates(msgspec.Struct, frozen=True):
    """The records of several targets that were verified together."""

    version: int
    verdict: Literal["holds", "falsified", "incomplete"]
    certificates: list[Certificate]


@dataclass(frozen=True)
class Asked:
    """The arguments of a run."""

    seed: int
    max_examples: int
    worlds: str
    command: str = ""
    devices: str = devices.CPU


def schema() -> dict[str, Any]:
    """Return the JSON schema of certificates."""
    (one, several), parts = msgspec.json.schema_components(
        [Certificate, Certificates], ref_template="#/$defs/{name}"
    )
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": draft, "title": "Certificate", "anyOf": [one, several], "$defs": parts}


def source_hash(subject: Subject) -> str:
    """Return the SHA-256 of a target's source: its file, or every Python file of its top-level package."""
    target = Target.of(subject.target)
    if target.file:
        return _digest([(target.file.name, target.file)])
    package = target.place.partition(".")[0]
    spec = importlib.util.find_spec(package)
    if spec is None:
        return _digest([])
    if spec.submodule_search_locations is None:
        origin = Path(spec.origin or "")
        return _digest([(origin.name, origin)] if origin.is_file() else [])
    left_out = SUITE if package == verified_losses.__name__ else ()
    files = [file for folder in spec.submodule_search_locations for file in _python_files(Path(folder))]
    return _digest((name, file) for name, file in files if name.partition("/")[0] not in left_out)


@cache
def issuer() -> Issuer:
    """Return the suite's version and hashes."""
    package = Path(verified_losses.__file__).parent
    return Issuer(verified_losses.__version__, *(_digest(_python_files(package / name)) for name in SUITE))


def _python_files(folder: Path) -> list[tuple[str, Path]]:
    """Return every Python file below a folder, after its path from there; linked folders are not entered."""
    return [(file.relative_to(folder).as_posix(), file) for file in folder.rglob("*.py") if file.is_file()]


def _digest(files: Iterable[tuple[str, Path]]) -> str:
    """Return the SHA-256 of files by name: of each, the lengths of its name and its content, and both."""
    digest = hashlib.sha256()
    for name, file in sorted(files):
        content = file.read_bytes()
        digest.update(f"{len(name.encode())} {len(content)} {name}".encode())
        digest.update(content)
    return digest.hexdigest()


def today() -> str:
    """Return the day in UTC, or that of SOURCE_DATE_EPOCH, as reproducible builds set it."""
    seconds = float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def stamp() -> dict[str, str]:
    """Return when, with which torch and of which sources a record of the shipped losses is."""
    suite = issuer()
    return {
        "date": today(), "torch": _torch(), "source": source_hash(next(iter(SHIPPED.values()))[1]),
        "oracles": suite.oracles, "properties": suite.properties,
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions that a verdict depends on."""
    packages = {name: metadata.version(name) for name in ("torch", "numpy", "hypothesis")}
    with contextlib.suppress(metadata.PackageNotFoundError):
        packages["horovod"] = metadata.version("horovod")
    return {**packages, "python": platform.python_version(), "platform": sys.platform}


def certificate(
    subject: Subject | Trainer,
    contract: str,
    findings: Sequence[AnyFinding],
    defects: Sequence[Defect],
    asked: Asked,
    known: Known,
    not_verified: Sequence[str],
    complete: bool,
    shard: Part | None = None,
    drawn: Drawn | None = None,
) -> Certificate:
    """Assemble the record of one target.

    Args:
        subject: the target.
        contract: what it is held to.
        findings: what came of its checks; of one that fails in several ways, one finding each.
        defects: those findings that are falsified, grouped.
        asked: the arguments of the run.
        known: what is accepted.
        not_verified: what did not run, and why.
        complete: whether all checks ran.
        shard: which part of a run this is.
        drawn: counts of the cases, where the findings do not hold all of them.
    """
    named: dict[int, tuple[str, str | None]] = {
        id(finding): (fingerprint_of(defect.leader), str(defect.file) if defect.file else None)
        for defect in defects
        for finding in (defect.leader, *defect.others)
    }
    properties = [
        Property(
            finding.law,
            finding.world,
            finding.check.world.device,
            finding.examples,
            finding.verdict,
            finding.worst_error_over_bound,
            plain("\n".join(filter(None, [finding.reason, getattr(finding, "module", "")]))),
            *named.get(id(finding), ("", None)),
            finding.counterexample,
            plain(known.reason(finding)),
            round(finding.seconds, 3),
            [float(f"{ratio:.3g}") for ratio in finding.ratios],
            finding.limit,
            _concern(finding) if finding.verdict == "falsified" else "",
        )
        for finding in findings
    ]
    verdict = concluded(findings, known, complete)
    about = _of_step(subject) if isinstance(subject, Trainer) else _of_loss(subject, contract)
    asked_of = subject.subject if isinstance(subject, Trainer) else subject
    return Certificate(
        CERTIFICATE_VERSION,
        plain(subject.target),
        contract,
        about.pop("convention"),
        verdict,
        properties,
        versions(),
        asked.seed,
        asked.max_examples,
        asked.worlds,
        used(findings, asked, known, complete),
        source_hash(asked_of),
        issuer(),
        list(not_verified),
        _counts(findings) if drawn is None else drawn,
        plain(asked.command),
        shard,
        limits=list(dict.fromkeys(finding.limit for finding in findings if finding.limit)),
        date=today(),
        **about,
    )


def _of_loss(subject: Subject, contract: str) -> dict[str, Any]:
    """Return what a certificate says of a loss alone."""
    return {
        "convention": " and ".join(subject.conventions) if "convention" in values_of(contract) else "",
        "stubbed": list(subject.stubbed),
        "interpreted": subject.interpret,
        "form": described(contract, subject),
        "contract_source": source_hash(Subject(contract)) if is_own(contract) else "",
        "tolerance": contract_of(contract).tolerance,
    }


def _of_step(trainer: Trainer) -> dict[str, Any]:
    """Return what it says of a training step."""
    return {"convention": "", "form": trainer.described, "tolerance": step.TOLERANCE}


def _counts(findings: Sequence[AnyFinding]) -> Drawn:
    """Count the cases by what was drawn."""
    of_steps = [one for one in findings if isinstance(one, StepFinding)]
    return step.drawn(of_steps) if of_steps else count([one for one in findings if isinstance(one, Finding)])


def _concern(finding: AnyFinding) -> str:
    return finding.concern if isinstance(finding, StepFinding) else concerns.of(finding)


def fingerprint_of(finding: AnyFinding) -> str:
    """Return the name of a defect, whatever the seed."""
    return finding.fingerprint if isinstance(finding, StepFinding) else fingerprint(finding)


def part(
    label: str,
    subject: Subject | Trainer,
    shard: Shard,
    planned: Sequence[Check | StepCheck],
    findings: Sequence[AnyFinding],
    not_verified: Sequence[str],
) -> Part | None:
    """Return what a target's certificate says of its shard; None where the run is whole.

    Args:
        label: the target's name.
        subject: the target.
        shard: which part of the run this is.
        planned: the checks of the whole run, of other targets too.
        findings: those of this shard.
        not_verified: what is not verified in this shard alone.
    """
    if shard.count == 1:
        return None
    shared = zip(planned, takers(planned, shard.count), strict=True)
    return Part(
        shard.index + 1,
        shard.count,
        label,
        subject.subject if isinstance(subject, Trainer) else subject,
        [Planned(one.law.name, one.world.name, 1 + taken) for one, taken in shared if one.label == label],
        [
            Found(one.law, one.world, fingerprint_of(one), one.smallest.to_json())
            for one in findings
            if one.loss == label and one.verdict == "falsified" and one.smallest
        ],
        list(not_verified),
        trainer=subject if isinstance(subject, Trainer) else None,
    )


def concluded(
    findings: Sequence[Told], known: Known, complete: bool = True
) -> Literal["holds", "falsified", "incomplete"]:
    """Return the verdict of some findings, which are all that there are to come or not."""
    if any(one.verdict == "falsified" and not known.reason(one) for one in findings):
        return "falsified"
    return "holds" if complete and not any(one.not_run for one in findings) else "incomplete"


def used(findings: Sequence[Told], asked: Asked, known: Known, complete: bool) -> list[Device]:
    """Return the devices that were asked for or used, and CUDA where it was not."""
    ran_on = [one.check.world.device.split("/") for one in findings]
    there: list[Device] = []
    for device in dict.fromkeys([*asked.devices.split(","), *chain.from_iterable(ran_on)]):
        own = [one for one, ranks in zip(findings, ran_on, strict=True) if device in ranks]
        facts = probe.look(device)
        notes = [f"{one.world}: {one.check.world.found}" for one in own if one.check.world.found]
        notes += [f"{one.law} in world {one.world}: {one.reason}" for one in own if one.not_run]
        worlds = dict.fromkeys(one.world for one in own if one.examples)
        there.append(
            Device(
                device, facts.name, facts.driver, _torch(), facts.cuda, facts.nccl, list(worlds),
                concluded(own, known, complete), list(dict.fromkeys(notes)),
            )
        )  # fmt: skip
    for kind in devices.KINDS.values():
        if not any(devices.kind_of(one.device) == kind.name for one in there):
            why = kind.missing() or f"not requested (add --device {kind.name})"
            there.append(Device(kind.name, "", "", _torch(), "", "", [], "not verified", [why]))
    return there


def _torch() -> str:
    # not what is installed says: a local build has the same version as a release
    import torch

    return str(torch.__version__)


def together(certificates: Sequence[Certificate]) -> Certificate | Certificates:
    """Return the record of a run: the certificate of one target, or those of several."""
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
