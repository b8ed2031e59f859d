"""Certifies every planted step and every right one: `make defects`.

Exit status: 0 each planted step is caught by the laws named, and no right one is accused; 1 not so.
"""

import argparse
import sys
import time
from collections.abc import Iterator

from verified_losses.properties.names import STEP_LAWS
from verified_losses.properties.step.inspection import inspected
from verified_losses.properties.step.verify import StepCertifier, StepFinding, checks
from verified_losses.properties.worlds import server
from verified_losses.properties.worlds.specs import parse

from .index import DEFECTS, RIGHT, Planted

EXAMPLES = 25
"""Of each law that is to catch a planted step."""
ROUND = "RoundsItsLoss", "LogsOneDecimal", "LogsThreeDigits"
"""The last digits that they log are the tolerance."""
FEW = 10
"""Of each law that is not to accuse a right one."""


def findings(planted: Planted, examples: int, seed: int = 0) -> Iterator[StepFinding]:
    """Verify the laws that are to catch a step, or all that a right one is held to; there is one at least."""
    worlds = parse(planted.world)
    trainer = inspected(planted.trainer, worlds)
    planned = checks(planted.name, trainer, trainer.places(worlds), planted.caught_by or STEP_LAWS)
    assert planned, f"{planted.name}: nothing is verified in {planted.world}: {trainer.unsimulated}"
    yield from StepCertifier(examples, seed).verify_all(planned)


def amiss(planted: Planted, finding: StepFinding) -> str:
    """Return what is not as expected of a finding, or nothing."""
    if not planted.wrong:
        if finding.verdict == "skipped" and planted.skips and planted.skips in finding.reason:
            return ""
        return finding.reason if finding.verdict in ("falsified", "skipped") else ""
    if finding.verdict != "falsified":
        return finding.verdict
    explained = finding.reason.startswith("Falsified") or (
        planted.raises and planted.raises in finding.reason
    )
    return "" if explained else finding.reason


def main() -> int:
    """Print a line a step; return the exit status."""
    parser = argparse.ArgumentParser(description="Certify the planted steps and the right ones.")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    server.start()
    wrong, worst, taken = 0, 0.0, {}
    for title, listed, examples in (("planted", DEFECTS, EXAMPLES), ("right", RIGHT, FEW)):
        begun = time.monotonic()
        for one in listed:
            if asked.only and one.name not in asked.only:
                continue
            started = time.monotonic()
            for finding in findings(one, examples, asked.seed):
                said = amiss(one, finding)
                wrong += bool(said)
                if not one.wrong and one.name not in ROUND:
                    worst = max(worst, finding.worst_error_over_bound)
                print(
                    f"{one.name}: {finding.law} ({finding.world}): {finding.verdict} {finding.module} {said}"
                )
            taken[one.name] = time.monotonic() - started
        longest = ", ".join(f"{name} {taken[name]:.0f} s" for name in sorted(taken, key=taken.get)[-5:])
        print(f"the longest: {longest}")
        print(f"{title}: {time.monotonic() - begun:.0f} s", flush=True)
    print(f"largest error over tolerance of right steps: {worst:.3g}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
