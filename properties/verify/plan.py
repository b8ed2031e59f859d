"""What people ask for, made into the checks to run."""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from hypothesis import Phase, Verbosity, find, settings
from hypothesis.errors import Unsatisfiable

from .. import devices
from ..cases import Case
from ..contracts import Contract, contract_of
from ..forms import NAMES
from ..inspection import Inspection, constants_of, fitting, import_target, inspect_target, takes_scale
from ..laws import laws
from ..names import LAWS, STEP_LAWS
from ..options import MAX_EXAMPLES, WORLDS
from ..own.formula import NoFormula
from ..running import first_call
from ..subjects import Subject
from ..worlds import OutOfTime, World, WorldError, exception_of, probe
from ..worlds.specs import SINGLE, WorldSpec, placed
from ..worlds.table import KINDS, Kind
from .among import among_ranks
from .arguments import (
    Subjects,
    Unusable,
    check_max_examples,
    kept_laws,
    some_worlds,
)
from .certifier import Check, checks, without_local_constants
from .shards import Shard, taker

NO_GROUP = "Default process group has not been initialized"
"""What torch says where somebody asks for a rank that there is not."""
AnyCheck = TypeVar("AnyCheck")
"""Of a loss, or of a training step."""


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
    kept = kept_laws([law.name for law in laws()], only, skip)
    planned = [check for check in checks(subjects, placed(worlds)) if check.law.name in kept]
    if not planned:
        applies = "no property that is asked for applies there"
        raise Unusable("", f"nothing to verify for {', '.join(subjects)} in world {world}: {applies}")
    return planned


def takers(planned: Sequence[Any], count: int) -> list[int]:
    """Return which of so many shards, from 0, takes each check.

    Checks of one law cost alike: they are dealt to all shards in turn, before those of the next law.
    """
    order = [*LAWS, *STEP_LAWS]
    by_law = sorted(range(len(planned)), key=lambda place: order.index(planned[place].law.name))
    taken = {place: taker(number, count) for number, place in enumerate(by_law)}
    return [taken[place] for place in range(len(planned))]


def own_checks(planned: Sequence[AnyCheck], shard: Shard) -> list[AnyCheck]:
    """Return the checks of a shard, in their order."""
    taken = takers(planned, shard.count)
    return [check for check, index in zip(planned, taken, strict=True) if index == shard.index]


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
        label: (name, _fitted(subject, contract_of(name), deadline, device))
        for label, (name, subject) in subjects.items()
    }


def inspection(asked: Subject, name: str) -> tuple[Subject, bool]:
    """Return a subject asked only for what it takes, and whether its values are the oracle's.

    Raises:
        Unusable: it cannot be verified as this contract.
    """
    return _inspected(asked, contract_of(name), math.inf, devices.CPU)


def _fitted(asked: Subject, contract: Contract, deadline: float, device: str) -> Subject:
    return _inspected(asked, contract, deadline, device)[0]


def _inspected(asked: Subject, contract: Contract, deadline: float, device: str) -> tuple[Subject, bool]:
    # the first example that is drawn is the simplest
    first = [Phase.generate]
    quiet = settings(database=None, deadline=None, verbosity=Verbosity.quiet, phases=first)
    size = contract.smallest_world
    drawn = contract.cases(replace(asked, options=(), features=""), size)
    try:
        with without_local_constants():
            simplest = replace(find(drawn, lambda case: True, settings=quiet), device=device)
        simplest = assuming(simplest, contract, asked)
        looked_at = [contract.probe(case) for case in probes(simplest, asked)]
        contract.check(looked_at)
    except NoFormula as error:
        raise Unusable("contract", str(error)) from error
    except Unsatisfiable as error:
        said = f"{contract.name}: refuses every case that is drawn, or is no number in any"
        raise Unusable("contract", said) from error
    worlds = asked.worlds()
    worlds.until = deadline
    doing = "imported"
    try:
        alone = worlds.open(replace(SINGLE, device=device))
        alone.run(import_target, asked)
        doing = "constructed"
        (found,) = alone.run(inspect_target, asked, contract, looked_at)
    except OutOfTime:
        return asked, False
    except WorldError as error:
        (rank,) = error.ranks
        happened = {"raised": "raised", "hung": "hung"}.get(rank.state, "ended its process")
        # of calls it is read what they raised
        called = " or first called" if doing == "constructed" and rank.state != "raised" else ""
        problem = f"{asked.target}: {happened} as it was {doing}{called}"
        if rank.state == "raised":
            problem += f": {exception_of(rank.detail)}"
        if NO_GROUP in rank.detail:
            problem += " It needs a process group where there is one process alone: guard it by "
            problem += "torch.distributed.is_initialized()"
        if devices.asks_for_cuda(device, rank.detail):
            problem += ": it asks for CUDA, so verify it with device cuda, where there is a GPU"
        raise Unusable("", problem, rank.detail) from error
    signature = found.signature
    if signature.unusable:
        raise Unusable("", f"{asked.target}: {signature.unusable}", found.detail)
    contract = contract.in_form(found.form)
    taken = (*signature.options, *found.form.names())
    assumed = {name: value for name, value in contract.assumed.items() if name not in taken}
    options = tuple((assumed | dict(asked.options)).items())
    subject = _with_form(replace(asked, options=options), contract, found)
    if not found.matches:
        _call_once(subject, contract, simplest, alone, taken)
    return _among_ranks(subject, contract, simplest, taken, asked), found.matches


def _with_form(asked: Subject, contract: Contract, found: Inspection) -> Subject:
    form, options = found.form, found.signature.options
    if contract.name not in NAMES:
        signature = found.signature
        return replace(
            asked,
            bias=signature.bias,
            output_dict=signature.output_dict,
            stubbed=signature.stubbed,
        )
    return replace(
        asked,
        bias=found.signature.bias,
        output_dict=found.signature.output_dict,
        form=form,
        features=found.features,
        held=form.held(contract.name),
        constants=constants_of(form, contract, options),
        dtypes=tuple(one for one in asked.dtypes if one != "float64" or not found.single or asked.strict),
        scales=asked.scales if takes_scale(form, contract, options) else "one",
        defaults=found.defaults,
        single=found.single and not asked.strict,
        pad_ids=() if asked.strict else found.pad_ids,
        refuses_one="" if asked.strict else found.refuses_one,
        stubbed=found.signature.stubbed,
        even=asked.even or bool(form.rows),
    )


def assuming(case: Case, contract: Contract, asked: Subject) -> Case:
    """Return a case with the options that are pinned, else assumed: a target need not take any."""
    wanted = contract.assumed | dict(asked.options)
    options = {name: wanted.get(name, value) for name, value in case.options}
    padding = {"pad_id": wanted["pad_id"]} if "pad_id" in wanted else {}
    return replace(case, options=tuple(options.items()), **padding)


def probes(simplest: Case, asked: Subject) -> list[Case]:
    """Return the cases that a target is inspected with: few rows of no unit norm, and two scales.

    Their temperatures are below that at which losses stop one.
    """
    dtype = "float32" if "float32" in asked.dtypes else asked.dtypes[0]
    plain = replace(
        simplest, rows=(5,), width=asked.width_of(4), dtype=dtype, pattern="grid", scale=3.0, bias=-1.0,
        seed=3, vocabulary=5, length=2, teacher_width=3, output_dict=False, scalar_shape=(),
        wide_scalars=False, frozen=(), strides="contiguous", pads="none", pad_rows=0,
    )  # fmt: skip
    return [plain, replace(plain, rows=(3,), scale=6.0, bias=0.5, seed=4)]


def _among_ranks(
    subject: Subject, contract: Contract, simplest: Case, taken: tuple[str, ...], asked: Subject
) -> Subject:
    if not contract.is_loss or not contract.is_mean:
        return subject
    case = contract.probe(replace(probes(simplest, subject)[0], rows=(2, 2)))
    if contract.name in NAMES:
        case = fitting(case, subject.form, subject.features, contract, taken)
    bias = case.bias if subject.bias or contract.whole else None
    case = replace(case, bias=bias, options=tuple((dict(case.options) | dict(subject.options)).items()))
    return among_ranks(subject, contract, case, taken, asked)


PLAIN: list[dict[str, Any]] = [{"rows": (1,)}, {"rows": (4,), "width": 8, "pattern": "unit"}]
"""What the plain cases differ in, besides the dtype: the simplest one, and one like a batch."""


def _call_once(
    subject: Subject, contract: Contract, simplest: Case, alone: World, taken: tuple[str, ...]
) -> None:
    """Call a subject with plain cases.

    A call that hangs or ends its process is left to the checks, and so is a loss that raises in some calls:
    one row, one dtype, or one process may be what it does not support.

    Raises:
        Unusable: every call raised.
    """
    dtypes = [one for one in ("float32", "float64") if one in subject.dtypes] or subject.dtypes[:1]
    size, options = contract.smallest_world, tuple((dict(simplest.options) | dict(subject.options)).items())
    given: dict[str, Any] = {"options": options, "bias": None, "scalar_shape": ()}
    given["output_dict"] = simplest.output_dict and subject.output_dict
    cases = [replace(simplest, dtype=dtype, **given, **one) for one in PLAIN for dtype in dtypes]
    cases = [replace(case, width=subject.width_of(case.width)) for case in cases]
    if "bias" in subject.form.names():
        cases = [replace(case, bias=1.0) for case in cases]
    if contract.name in NAMES:
        cases = [fitting(case, subject.form, subject.features, contract, taken) for case in cases]
    if size > 1:
        return
    try:
        (first,) = alone.run(first_call, subject, contract, cases)
        if not first.raised or _is_called_by_several(subject, contract, cases[-1]):
            return
    except (WorldError, OutOfTime):
        return
    problem = f"{subject.target}: every call raised: {exception_of(first.raised)}"
    problem += f"; the contract {contract.name} calls with {first.given}"
    if devices.asks_for_cuda(simplest.device, first.raised):
        problem += ": it asks for CUDA, so verify it with device cuda, where there is a GPU"
    raise Unusable("", problem, first.raised)


def _is_called_by_several(subject: Subject, contract: Contract, case: Case) -> bool:
    """Whether a call returns on two simulated ranks: a loss may gather without asking whether it can."""
    spec = WorldSpec("simulated", (2,), case.device)
    both = replace(case, rows=case.rows * 2)
    try:
        ranks = subject.worlds().open(spec, size=2).run(first_call, subject, contract, [both])
    except WorldError:
        return False
    return not any(rank.raised for rank in ranks)


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
    for label, subject in {check.label: check.subject for check in planned}.items():
        kinds = {check.world.row for check in planned if check.label == label and check.world.sizes[-1] > 1}
        lines += [f"{label}: {line}" for line in excluded(subject.excluded, kinds)]
    small = [label for label in labels if held_to[label].whole and not held_to[label].large]
    if small:
        lines.append(f"large batches: a formula does not say large=True: {', '.join(small)}")
    interpreted = dict.fromkeys(check.label for check in planned if check.subject.interpret)
    if interpreted:
        lines.append(
            "large batches, many logits, NaN, autocast and torch.compile: not in Triton's interpreter: "
            + ", ".join(interpreted)
        )
    ran_on = {devices.kind_of(check.world.device) for check in planned}
    if "cuda" not in ran_on:
        missing = devices.KINDS["cuda"].missing()
        lines.append(f"CUDA: {missing or 'not verified: not requested (add --device cuda)'}")
    if devices.CPU not in ran_on:
        lines.append("CPU: not verified: not requested (add --device cpu)")
    return lines


def excluded(kinds: Iterable[tuple[str, str]], ran: Collection[Kind]) -> Iterator[str]:
    """Yield what is said of kinds of worlds that a target is not verified in.

    Args:
        kinds: their names, and why.
        ran: the kinds in which it was verified among several ranks.
    """
    others = " and ".join(sorted(kind.words or kind.name for kind in ran))
    for name, why in kinds:
        if KINDS[name].words:
            able = "processes" if name == "simulated" else "simulated"
            instead = f"verified in {others} alone" if ran else f"add {KINDS[able].prefix}:2 to the worlds"
            yield f"{KINDS[name].words}: {why}: {instead}"


def left_out(planned: Sequence[Any]) -> list[str]:
    """Return which checks were not run, as the first finding ended the run."""
    names: dict[tuple[str, str], list[str]] = {}
    for check in planned:
        names.setdefault((check.label, check.world.name), []).append(check.law.name)
    return [
        f"{label} in world {world}: {', '.join(laws)}: not run after the first finding"
        for (label, world), laws in names.items()
    ]
