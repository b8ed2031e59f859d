"""Fingerprints: names of failures that do not change with seeds, sizes or ranks."""

import hashlib
import json
import math
import re
import traceback

from ..laws import Falsified
from ..subjects import Target
from ..worlds import RankState, WorldError
from ..worlds.simulated import SimulationError
from .certifier import Finding

FRAME = re.compile(r'^ *File "(?P<file>.+)", line \d+,? in (?P<function>\S+)', re.MULTILINE)
RAISED = re.compile(r"^(?:\w+\.)*(?P<name>[A-Za-z_]\w*)(?::|$)", re.MULTILINE)
CAUSED = ("CommunicationError", "DistBackendError", "DistNetworkError", "DistStoreError")
"""What a rank raises because another one failed."""


def signature(target: str, error: Exception | None) -> tuple[str, ...]:
    """Return the kind of failure: the wrong output, or the exception and the function that raised it."""
    if isinstance(error, Falsified) and error.place is not None:
        kind = error.place.kind, error.place.name
        return (*kind, "not finite") if not_finite(error) else kind
    if isinstance(error, SimulationError) and error.finding != "raised":
        return (error.finding,)
    if isinstance(error, WorldError):
        states = [state for state in error.ranks if state.state != "returned"]
        return min((_ended(target, state) for state in states), default=("nothing",))[1:]
    if isinstance(error, Falsified):
        return type(error).__name__, _without_numbers(str(error))
    text = "".join(traceback.format_exception(error)) if error else ""
    return type(error).__name__, _function(target, text)


def not_finite(error: Exception | None) -> bool:
    """Whether what was seen is an infinity, or not a number: another defect than a wrong number."""
    observed = error.place.observed if isinstance(error, Falsified) and error.place is not None else None
    return isinstance(observed, float) and not math.isfinite(observed)


def fingerprint(finding: Finding) -> str:
    """Return twelve hexadecimal digits: the same for one defect seen by one law, whatever the seed."""
    if finding.fingerprint:
        return finding.fingerprint
    check = finding.check
    several = max(check.world.sizes) > 1
    parts = [
        check.contract.name,
        check.subject.conventions,
        check.law.name,
        "several ranks" if several else "one rank",
        signature(check.subject.target, finding.error),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _ended(target: str, state: RankState) -> tuple[str, ...]:
    """Return how a rank ended, after a word that puts causes before their consequences."""
    if state.state == "raised":
        names = RAISED.findall(state.detail)
        name = names[-1] if names else "Exception"
        caused = name in CAUSED or "Connection closed by peer" in state.detail
        return "3" if caused else "0", name, _function(target, state.detail)
    detail = _without_numbers(state.detail.partition("\n")[0]) if state.state in ("exited", "killed") else ""
    return "1" if detail else "2", state.state, detail, _function(target, state.detail)


def _function(target: str, text: str) -> str:
    """Return the innermost function of the target's own file in a traceback, or in a stack dump."""
    place, file = Target.of(target).place, Target.of(target).file
    own = place if file else place.replace(".", "/") + ".py"
    frames = FRAME.findall(text)
    if "most recent call first" in text:
        frames.reverse()
    mine = [function for file, function in frames if file.endswith(own.lstrip("./"))]
    return mine[-1] if mine else ""


def _without_numbers(text: str) -> str:
    return re.sub(r"-?\d[\d.e+-]*", "#", text)
