"""Findings of several shards that one defect explains."""

import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import msgspec
from hypothesis.errors import HypothesisDeprecationWarning, UnsatisfiedAssumption

from ..devices import CPU, absent
from ..examples import Example
from ..step.cases import StepCase
from ..step.laws import laws
from ..step.target import Trainer
from ..step.verify import StepCheck, StepFinding, again, bench_of
from ..subjects import Subject
from ..verify.arguments import Unusable, step_worlds
from ..verify.certifier import Check, Finding, falsify
from ..verify.fingerprints import fingerprint
from ..verify.plan import plan
from ..worlds import OutOfTime
from .certificate import Certificate, Part, fingerprint_of, issuer, source_hash
from .defects import explain

AGAIN_SECONDS = 60.0
"""How long findings are looked at again, before it is compared which are one."""


def regrouped(merged: Certificate, shards: Sequence[Certificate], folder: Path) -> tuple[Certificate, str]:
    """Tell, as one run does, which findings of different shards are one defect, and write its counterexample.

    For that the smallest cases are run again, where the target and the suite are those of the shards. A case
    that does not fail again as it did leaves its finding as it was.

    Args:
        merged: the certificate of one target.
        shards: those that it was made of.
        folder: where to write counterexamples.

    Returns:
        The certificate, and why findings were not compared, if so.
    """
    parts = [one.shard for one in shards if one.shard and one.shard.found]
    if len(parts) < 2:
        return merged, ""
    subject, trainer = parts[0].subject, parts[0].trainer
    if _source(subject) != merged.source or issuer() != merged.issuer:
        other = "the source of the target or of the suite is another than that which was verified"
        return merged, f"{merged.target}: findings of different shards were not compared: {other}"
    try:
        found = _steps_again(merged, parts, trainer) if trainer else _found_again(merged, parts)
        defects = explain(found, folder)
    finally:
        subject.worlds().close()
    named = {
        (finding.law, finding.world): (fingerprint_of(defect.leader), str(defect.file or "") or None)
        for defect in defects
        for finding in (defect.leader, *defect.others)
    }
    rows = []
    for one in merged.properties:
        mark, file = named.get((one.property, one.world), (one.fingerprint, one.counterexample))
        rows.append(msgspec.structs.replace(one, fingerprint=mark, counterexample=file))
    return msgspec.structs.replace(merged, properties=rows), ""


def _source(subject: Subject) -> str:
    """Return the hash of a target's source; nothing, where it is not here."""
    try:
        return source_hash(subject)
    except (OSError, ValueError):
        return ""


def _found_again(merged: Certificate, parts: Sequence[Part]) -> list[Finding]:
    """Run the smallest cases again; return the findings that they give again."""
    label, subject, deadline = parts[0].label, parts[0].subject, time.monotonic() + AGAIN_SECONDS
    subject.worlds().until = deadline
    places = [one.device for one in merged.devices if one.verdict != "not verified"]
    planned = _planned(label, merged.contract, subject, merged.worlds, places)
    findings = []
    for found in (found for part in parts for found in part.found):
        check = planned.get((found.property, found.world))
        if check and time.monotonic() < deadline:
            finding = _again(check, merged.seed, Example.from_json(found.example))
            if finding and fingerprint(finding) == found.fingerprint:
                findings.append(finding)
    return findings


def _steps_again(merged: Certificate, parts: Sequence[Part], trainer: Trainer) -> list[StepFinding]:
    """Run the smallest cases of a training step again; return the findings that they give again."""
    deadline, benches, findings = time.monotonic() + AGAIN_SECONDS, {}, []  # type: ignore[var-annotated]
    trainer.worlds().until = deadline
    worlds = {spec.name: spec for spec in step_worlds(merged.worlds, [CPU], alone=False)}
    for found in (found for part in parts for found in part.found):
        (law,) = [one for one in laws() if one.name == found.property]
        check = StepCheck(parts[0].label, trainer, law, worlds[found.world])
        bench = bench_of(benches, check, deadline)
        finding = again(check, bench, merged.seed, StepCase.from_json(found.example))
        if finding and finding.fingerprint == found.fingerprint:
            findings.append(finding)
    return findings


def _planned(
    label: str, contract: str, subject: Subject, worlds: str, places: Sequence[str]
) -> dict[tuple[str, str], Check]:
    here = [place for place in places if not absent(place)]
    try:
        planned = plan({label: (contract, subject)}, worlds, places=here)
        return {(one.law.name, one.world.name): one for one in planned}
    except Unusable:  # a kind of world that is not here
        return {}


def _again(check: Check, seed: int, example: Example) -> Finding | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", HypothesisDeprecationWarning
            )  # of `assume` where nothing is drawn
            falsify(check, example)
    except (UnsatisfiedAssumption, OutOfTime):
        return None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return Finding(check, seed, "falsified", reason=reason, smallest=example, error=error)
    return None
