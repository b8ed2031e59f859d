"""The lines of `log.ndjson`, and what a find is. Imports no torch."""

from typing import Any

import msgspec

VERSION = 1
Drawn = dict[str, dict[str, int]]
"""Field, value, number of cases."""


class Begun(msgspec.Struct, frozen=True, tag="begun", tag_field="kind"):
    """The first line: what was asked for. All that follows depends on nothing else."""

    version: int
    targets: dict[str, str]
    """By name of the loss."""
    arguments: dict[str, Any]
    """The arguments that choose the cases and the contract."""
    shard: str
    corpus: list[str]
    """Names of the finds that were there before, and are not fixed."""
    sources: dict[str, str]
    """SHA-256 of each target's source, by name of the loss."""
    versions: dict[str, str]
    time: str
    command: str


class Unit(msgspec.Struct, frozen=True):
    """One law of one loss in one kind of world, with one seed."""

    check: int
    """Its number among the checks that are planned."""
    loss: str
    law: str
    world: str
    round: int
    seed: int
    examples: int
    """The most cases; a costly law takes a share of them."""
    even: bool = False
    """Every rank gets equally many rows: the target does not support others."""
    contiguous: bool = False
    """All inputs are contiguous: the target does not take others."""


class Failure(msgspec.Struct, frozen=True):
    """An exception, as far as anyone asks for it later."""

    type: str
    message: str
    place: dict[str, Any] | None = None
    world: str = ""
    ranks: list[tuple[int, str, str]] = []
    finding: str = ""
    """Of a simulated world."""


class Find(msgspec.Struct, frozen=True, tag="find", tag_field="kind"):
    """A failure of a check that no failure of that check before has had the fingerprint of."""

    unit: Unit
    fingerprint: str
    file: str
    """Name of the counterexample."""
    headline: str
    reason: str
    example: str
    """The smallest, as JSON; empty where it is not known, as of a find of an earlier run."""
    failure: Failure
    hung: bool
    is_new: bool = True
    """Whether it was not among the corpus."""
    is_small: bool = True
    """Whether the example was made smaller, and a counterexample written."""


class Done(msgspec.Struct, frozen=True, tag="unit", tag_field="kind"):
    """What came of a unit."""

    unit: Unit
    seconds: float
    ratios: list[float]
    """Error over bound of every case that holds."""
    drawn: Drawn
    branches: list[str]
    """Of the target; in the log those that the check had not taken before."""
    finds: dict[str, int]
    """Fingerprints, and how many cases failed so."""
    reason: str = ""
    """Why no case was compared."""
    hung: bool = False
    is_whole: bool = True
    """False where the time was over before it was done."""
    is_unjudged: bool = False
    """Whether a failing case may be a limit, and the time was over before that was known."""
    seen: dict[str, str] = {}
    """How much has been seen in all, as the log says it."""
    limits: dict[str, Find] = {}
    """What the target does not support, where that is no defect, with the smallest case."""


class Replayed(msgspec.Struct, frozen=True, tag="replay", tag_field="kind"):
    """A find of the corpus, run again at the start."""

    file: str
    state: str


class Ended(msgspec.Struct, frozen=True, tag="ended", tag_field="kind"):
    """The last line."""

    status: int
    why: str
    """"rounds", "time", "find", "SIGINT", "SIGTERM"."""
    time: str


Line = Begun | Find | Done | Replayed | Ended
encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Line).decode
