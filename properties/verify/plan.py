"""What people ask for, made into the checks to run."""

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import Verbosity, find, settings

from .. import devices
from ..contracts import Contract, contracts
from ..laws import laws
from ..running import read_signature
from ..subjects import Subject
from ..worlds import OutOfTime, WorldError, probe
from ..worlds.specs import SINGLE, placed
from ..worlds.table import KINDS
from .arguments import MAX_EXAMPLES, WORLDS, Subjects, Unusable, check_max_examples, some_worlds
from .certifier import Check, checks
from .shards import Shard, taker


def plan(
    subjects: Subjects,
    world: str = WORLDS,
    max_examples: int = MAX_EXAMPLES,
    only: Sequence[str] | None = None,
    skip: Sequence[str] | None = None,
    places: Sequence[str] = (devices.CPU,),
) -> list[Check]:
    """List the checks: the same arguments, the same list. No target is looked at.

    Raises:
        Unusable: an argument is.
    """
    worlds = some_worlds(world, places)
    check_max_examples(max_examples)
    kept = _kept(only, skip)
    planned = [check for check in checks(subjects, placed(worlds)) if check.law.name in kept]
    if not planned:
        applies = "no property that is asked for applies there"
        raise Unusable("", f"nothing to verify for {', '.join(subjects)} in world {world}: {applies}")
    return planned


def takers(planned: Sequence[Check], count: int) -> list[int]:
    """Return which of so many shards, from 0, takes each check.

    Checks of one law cost alike: they are dealt to all shards in turn, before those of the next law.
    """
    order = [law.name for law in laws()]
    by_law = sorted(range(len(planned)), key=lambda place: order.index(planned[place].law.name))
    taken = {place: taker(number, count) for number, place in enumerate(by_law)}
    return [taken[place] for place in range(len(planned))]


def own_checks(planned: Sequence[Check], shard: Shard) -> list[Check]:
    """Return the checks of a shard, in their order."""
    taken = takers(planned, shard.count)
    return [check for check, index in zip(planned, taken, strict=True) if index == shard.index]


def _kept(only: Sequence[str] | None, skip: Sequence[str] | None) -> set[str]:
    """Return the names of the laws to verify."""
    names = [law.name for law in laws()]
    for argument, patterns in (("only", only), ("skip", skip)):
        for pattern in patterns or []:
            if not fnmatch.filter(names, pattern):
                raise Unusable(argument, f"expected some of {', '.join(names)}, got {pattern!r}")
    wanted = [name for name in names if any(fnmatch.fnmatch(name, one) for one in only or ["*"])]
    return {name for name in wanted if not any(fnmatch.fnmatch(name, one) for one in skip or [])}


def working(names: Sequence[str]) -> tuple[str, ...]:
    """Return the devices that these names ask for, each looked at.

    Raises:
        Unusable: one is not there, or does not work.
    """
    found = devices.expand(names)
    for device in found:
        if absent := devices.absent(device):
            raise Unusable("device", absent)
    for device in found:
        try:
            probe.look(device)
        except ValueError as error:
            raise Unusable("device", str(error)) from error
    return found


def fitted(subjects: Subjects, deadline: float = math.inf, device: str = devices.CPU) -> Subjects:
    """Return the subjects, each asked only for what it takes. The targets are imported and constructed.

    When `time.monotonic()` is past the deadline, those that are not are returned as they are.

    Raises:
        Unusable: a target cannot be verified.
    """
    return {
        label: (name, _fitted(subject, contracts()[name], deadline, device))
        for label, (name, subject) in subjects.items()
    }


def _fitted(asked: Subject, contract: Contract, deadline: float, device: str) -> Subject:
    quiet = settings(database=None, deadline=None, verbosity=Verbosity.quiet)
    size = contract.smallest_world
    simplest = find(contract.cases(replace(asked, options=()), size), lambda case: True, settings=quiet)
    simplest = replace(simplest, device=device)
    worlds = asked.worlds()
    worlds.until = deadline
    try:
        alone = worlds.open(replace(SINGLE, device=device))
        (signature,) = alone.run(read_signature, asked, contract, simplest)
    except OutOfTime:
        return asked
    except WorldError as error:
        (rank,) = error.ranks
        happened = {"raised": "raised", "hung": "hung"}.get(rank.state, "ended its process")
        problem = f"{asked.target}: {happened} as it was imported or constructed"
        if devices.asks_for_cuda(device, rank.detail):
            problem += ": it asks for CUDA, so verify it with device cuda, where there is a GPU"
        raise Unusable("", problem, rank.detail) from error
    if signature.unusable:
        raise Unusable("", f"{asked.target}: {signature.unusable}")
    assumed = {name: value for name, value in contract.assumed.items() if name not in signature.options}
    options = tuple((assumed | dict(asked.options)).items())
    return replace(asked, options=options, bias=signature.bias, output_dict=signature.output_dict)


def not_verified(planned: Sequence[Check]) -> list[str]:
    """Return what these checks leave unverified, and why."""
    lines = []
    labels = dict.fromkeys(check.label for check in planned)
    held_to = {check.label: check.contract for check in planned}
    for kind in KINDS.values():
        ran = {check.label for check in planned if check.world.kind == kind.name}
        without = [label for label in labels if label not in ran]
        if kind.title and not ran:
            notes = [check.world.found for check in planned if f"place of {kind.name}:" in check.world.found]
            why = kind.missing() or next(iter(notes), f"not requested (add {kind.prefix}:2 to the worlds)")
            lines.append(f"{kind.title}: {why}")
        elif kind.title and without:
            lines.append(f"{kind.title}: {', '.join(without)} did not run over it")
    for undrawn in dict.fromkeys(one for check in planned for one in check.contract.undrawn):
        without = [label for label in labels if undrawn in held_to[label].undrawn]
        lines.append(f"{undrawn}, so none were drawn for {', '.join(without)}")
    ran_on = {devices.kind_of(check.world.device) for check in planned}
    if "cuda" not in ran_on:
        missing = devices.KINDS["cuda"].missing()
        lines.append(f"CUDA: {missing or 'not verified: not requested (add --device cuda)'}")
    if devices.CPU not in ran_on:
        lines.append("CPU: not verified: not requested (add --device cpu)")
    return lines


def left_out(planned: Sequence[Check]) -> list[str]:
    """Return which checks were not run, as the first finding ended the run."""
    names: dict[tuple[str, str], list[str]] = {}
    for check in planned:
        names.setdefault((check.label, check.world.name), []).append(check.law.name)
    return [
        f"{label} in world {world}: {', '.join(laws)}: not run after the first finding"
        for (label, world), laws in names.items()
    ]
