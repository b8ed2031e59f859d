"""Laws of a loss on CUDA alone: streams, graphs, waiting, memory.

That the CPU and a GPU agree within the sum of their bounds needs no law of its own: on each, "terms equal
the oracle" and the laws of gradients compare with the same oracle, within that device's bounds.

Results on another stream or of a graph are compared with the oracle's, within bounds: cuBLAS may choose
another order of summation there.
"""

import dataclasses

from ..cases import Case
from ..contracts import Contract
from ..reference import Reference
from ..standalone.acts import Outcome, hold_memory, replay, run_on_stream, wait_for_device
from ..standalone.judges import judge_words
from . import Bench, Falsified, Law, Unanswered
from .gradients import compare_gradients
from .values import compare_terms

STATED = "the loss does not state `waits_for_device = False`"


def on_the_device(case: Case) -> Case:
    """Return the case with its scalars on the device: those of the CPU are read as a kernel is launched."""
    return dataclasses.replace(case, cpu_scalars=False)


def recorded(case: Case) -> Case:
    """Return the case with other values, which a graph is captured with."""
    bias = case.bias and case.bias / 2
    return dataclasses.replace(case, seed=case.seed + 1, scale=case.scale / 2, bias=bias)


def on_another_stream(bench: Bench, reference: Reference) -> float:
    """On a stream other than the default one, a call waits for its inputs, and its result for the call."""
    prepared = bench.reference(on_the_device(reference.case))
    return _compare(bench, prepared, [outcomes[0] for outcomes in bench.act(run_on_stream, prepared.case)])


UNDEFINED = "what is captured has no value: other labels do not count"


def replayed_equals_eager(bench: Bench, reference: Reference) -> float:
    """Captured as a CUDA graph and replayed with other inputs, a call gives what it gives for those.

    A target that cannot be captured is not asked.
    """
    case = on_the_device(reference.case)
    other = recorded(case)
    if not bench.contract.defined(other):  # it has other labels
        raise Unanswered(UNDEFINED)
    kept = {name: getattr(case, name) for name in bench.contract.constructed_of(bench.subject)}
    prepared = bench.reference(case)
    ranks = bench.act(replay, case, dataclasses.replace(other, **kept))
    outcomes = [outcomes[0] for outcomes in ranks]
    for outcome in outcomes:
        if outcome.refused:
            raise Unanswered(outcome.refused)
    return _compare(bench, prepared, outcomes)


def _compare(bench: Bench, reference: Reference, outcomes: list[Outcome]) -> float:
    return max(
        compare_terms(reference, {"": outcomes}, bench.subject.strict), compare_gradients(reference, outcomes)
    )


def never_waits(bench: Bench, reference: Reference) -> float:
    """A loss that states `waits_for_device = False` makes the host wait in no call but its first."""
    ranks = bench.act(wait_for_device, on_the_device(reference.case))
    if [""] in ranks:
        raise Unanswered(STATED)
    return _said("the call", ranks)


def memory_is_returned(bench: Bench, reference: Reference) -> float:
    """After the third call of an object no more memory of the device is held than after the second."""
    return _said("the object", bench.act(hold_memory, reference.case))


def _said(what: str, ranks: list[list[str]]) -> float:
    for rank, noted in enumerate(ranks):
        if noted:
            raise Falsified(f"rank {rank}: {what} {', '.join(noted)}")
    return 0.0


def _is_loss(contract: Contract) -> bool:
    return contract.is_loss


LAWS = [
    Law("other streams equal the default", on_another_stream, needs="cuda", share=0.3, simulated=False,
        act=run_on_stream, prepare=on_the_device),
    Law("replayed equals eager", replayed_equals_eager, needs="cuda", share=0.1, patience=2.0,
        simulated=False, worlds="one", applies=_is_loss, act=replay, prepare=on_the_device,
        other=("recorded", "what the graph was captured with", recorded)),
    Law("never waits for the device", never_waits, needs="cuda", share=0.1, simulated=False, worlds="one",
        applies=_is_loss, act=wait_for_device, judge=judge_words, prepare=on_the_device),
    Law("memory is returned", memory_is_returned, needs="cuda", share=0.2, simulated=False,
        act=hold_memory, judge=judge_words),
]  # fmt: skip
