"""Cases per second of `verified-losses fuzz --jobs 1`, over those of the bare loop of `certify`, in one run.

Both run the same checks, in rounds of as many cases, in turn; a round is compared with the bare loop before
and after it. Half of the cases of fuzzing are drawn after those of large error, and need not cost what others
do: so the bare loop runs each round's very cases, too. Processes are started before anything is measured.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from verified_losses.properties.fuzz.campaign import Campaign, Plan
from verified_losses.properties.fuzz.lines import Find
from verified_losses.properties.fuzz.log import Log
from verified_losses.properties.fuzz.workers import Processes, Scope
from verified_losses.properties.subjects import SHIPPED
from verified_losses.properties.verify.certifier import Check, verify
from verified_losses.properties.verify.known import Known


class Silent:
    """Shows nothing of a run."""

    def found(self, find: Find, known: str) -> None:
        """Show no find: there should be none."""
        raise AssertionError(find.headline)

    def said(self, text: str) -> None:
        """Show no remark: there should be none."""
        raise AssertionError(text)

    def tick(self, campaign: Campaign) -> None:
        """Show nothing."""


def bare(planned: list[Check], most: int, seed: int, aim: bool = False) -> float:
    """Return cases per second of the loop of `certify`."""
    begun = time.perf_counter()
    cases = sum(verify(check, most, seed, aim=aim).examples for check in planned)
    return cases / (time.perf_counter() - begun)


class Fuzz:
    """The fuzz run, a round at a time."""

    def __init__(self, planned: list[Check], scope: Scope, most: int, folder: Path) -> None:
        self.own = dict(enumerate(planned))
        plan = Plan(0, most, rounds=0)
        self.workers = Processes(1, scope, folder)
        log = Log(folder / "log.ndjson")
        self.campaign = Campaign(
            self.own, plan, log, folder, Known(), set(), self.workers, Silent(), lambda campaign: None
        )

    def round(self) -> float:
        """Run a round, and return its cases per second."""
        campaign = self.campaign
        campaign.why = ""
        campaign.plan.rounds = (campaign.plan.rounds or 0) + 1
        for tally in campaign.tallies.values():
            tally.course.doublings = 0  # as many cases as the bare loop
        begun, cases = time.perf_counter(), campaign.cases_now
        while not campaign.why:
            campaign.step()
        return (campaign.cases_now - cases) / (time.perf_counter() - begun)


def _show(name: str, ratios: list[float]) -> None:
    print(f"{name}: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loss", default="clip", choices=SHIPPED)
    parser.add_argument("--world", default="1,sim:2-8")
    parser.add_argument("--max-examples", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scope = Scope({arguments.loss: SHIPPED[arguments.loss]}, arguments.world)
    planned = scope.plan()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(planned, scope, arguments.max_examples, Path(folder))
        bare(planned, 1, 0)
        for _ in range(4):  # the short rounds, in which everything starts
            fuzz.round()
        before = bare(planned, arguments.max_examples, 1)
        for number in range(arguments.rounds):
            seed = next(iter(fuzz.campaign.tallies.values())).unit(arguments.max_examples).seed
            rate = fuzz.round()
            same = bare(planned, arguments.max_examples, seed, aim=True)
            after = bare(planned, arguments.max_examples, number + 2)
            rows.append({"fuzz": rate, "same cases": same, "before": before, "after": after})
            before = after
        fuzz.workers.close()
    for row in rows:
        print(", ".join(f"{name} {rate:.1f}" for name, rate in row.items()), "cases/s")
    _show("fuzz over the bare loop", [2 * row["fuzz"] / (row["before"] + row["after"]) for row in rows])
    _show("fuzz over the bare loop with the same cases", [row["fuzz"] / row["same cases"] for row in rows])
    _show("the bare loop over itself a round before", [row["after"] / row["before"] for row in rows])
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
