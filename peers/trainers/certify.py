"""Certifies training steps of released trainers: `make trainers`.

Exit status: 0 each is falsified where the table says so, and nowhere else; 1 not so; 2 not installed.
"""

import argparse
import sys
from typing import NamedTuple

from verified_losses.properties.names import STEP_LAWS
from verified_losses.properties.step.inspection import inspected
from verified_losses.properties.step.target import Trainer
from verified_losses.properties.step.verify import StepCertifier, checks
from verified_losses.properties.subjects import Subject
from verified_losses.properties.worlds import server
from verified_losses.properties.worlds.specs import parse

from .load import installed

GRADS, VALUES = "gradients equal one process", "parameters equal one process"
LOGGED = "logged loss is the mean"


class Released(NamedTuple):
    """A trainer, and what is known of it."""

    target: str
    """In this package."""
    worlds: str = "1,proc:2"
    wrong: tuple[str, ...] = ()
    """The laws that do not hold."""
    why: str = ""


RELEASED = (
    Released(
        "of_open_clip:OpenClip",
        wrong=(GRADS, VALUES, LOGGED),
        why="with accum_freq the gradient of logit_scale is accum_freq times that of one batch",
    ),
    Released("of_accelerate:Accelerate"),
    Released("of_lightning:LightningFabric"),
    Released("of_transformers:HuggingFace"),
    Released("of_sentence_transformers:SentenceTransformers", "proc:2"),
    Released(
        "of_sentence_transformers:Accumulates",
        "1",
        wrong=(GRADS, VALUES, LOGGED),
        why="rows of other micro-batches are no negatives: for that it has a loss that caches",
    ),
)


def main() -> int:
    """Print a line a law; return the exit status."""
    parser = argparse.ArgumentParser(description="Certify training steps of released trainers.")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--max-examples", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    try:
        installed("accelerate")
    except ImportError as error:
        print(error, file=sys.stderr)
        return 2
    server.start()
    amiss = 0
    for one in RELEASED:
        if asked.only and one.target not in asked.only:
            continue
        worlds = parse(one.worlds)
        trainer = inspected(Trainer(Subject(f"peers.trainers.{one.target}")), worlds)
        falsified = set()
        planned = checks(one.target, trainer, worlds, STEP_LAWS)
        for finding in StepCertifier(asked.max_examples, asked.seed).verify_all(planned):
            print(
                f"{one.target}: {finding.law} ({finding.world}): {finding.verdict}, "
                f"{finding.examples} cases, {finding.worst_error_over_bound:.3g}",
                flush=True,
            )
            if finding.verdict == "falsified":
                falsified.add(finding.law)
                print(f"  {finding.reason.splitlines()[0]}\n  {finding.counterexample}")
        if falsified != set(one.wrong):
            amiss += 1
            print(f"  amiss: expected {sorted(one.wrong)} to be falsified")
        elif one.why:
            print(f"  as known: {one.why}")
    return 1 if amiss else 0


if __name__ == "__main__":
    sys.exit(main())
