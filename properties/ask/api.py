"""How people ask from code: `from verified_losses.properties import certify`."""

import inspect
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..devices import CPU, expand
from ..names import DTYPES, STEP
from ..options import COUNTEREXAMPLES, MAX_EXAMPLES, WORLDS
from ..own.formula import Formula
from ..show.certificate import Asked, Certificate
from ..show.defects import AnyFinding, Defect, explain, ranked
from ..show.terminal import explained, heading
from ..subjects import Target
from ..verify.arguments import (
    Unusable,
    ask,
    ask_step,
    check_seed,
    some_devices,
)
from ..verify.known import Known
from ..verify.plan import left_out, working
from ..verify.shards import read_shard
from .plans import AnyCheck, Targets, Verifier, fitted, left, planned, unasked, unlooked
from .run import Run

if TYPE_CHECKING:
    import pytest


NOT_ITS_OWN = {
    False: "the target does not gather: it is verified in one process",
    True: "it says nothing of this training step, or does not run in this world",
}
"""Why a check is none of a target's, by whether it makes a training step."""


class NotCertified(AssertionError):
    """A target is falsified, or something that was asked for could not run; the message lists what and why.

    Args:
        defects: what is wrong with it.
        not_run: what could not run.
        seed: of the cases.
        record: the certificate, where there is one.
        prefix: how hints name arguments: as options that begin so, or, where it is empty, as in code.
    """

    def __init__(
        self,
        defects: Sequence[Defect],
        not_run: Sequence[AnyFinding],
        seed: int,
        record: Certificate | None = None,
        prefix: str = "",
    ) -> None:
        missed = [
            f"{one.loss}: {one.law} was not verified in world {one.world}: {one.reason}" for one in not_run
        ]
        wrong = _explained(defects, prefix)
        super().__init__("\n\n".join([*wrong, *missed, f"seed {seed}"]))
        self.defects = tuple(defects)
        self.not_run = tuple(not_run)
        self.certificate = record


def certify(
    target: str | Callable[..., Any],
    contract: str | Formula,
    *,
    convention: str = "exact",
    config: Mapping[str, Any] | None = None,
    call: str = "",
    parameters: str | Sequence[str] = (),
    features: str = "",
    widths: Sequence[int] = (),
    equal_rows: bool = False,
    empty_ranks: bool = False,
    interpret: bool = False,
    strict: bool = False,
    large: bool = False,
    inductor: bool = False,
    world: str = WORLDS,
    device: str = CPU,
    dtypes: Sequence[str] = DTYPES,
    max_examples: int = MAX_EXAMPLES,
    max_time: float | None = None,
    fail_fast: bool = False,
    seed: int = 0,
    only: str | Sequence[str] | None = None,
    skip: str | Sequence[str] | None = None,
    counterexamples: str | Path = COUNTEREXAMPLES,
    shard: str | None = None,
) -> Certificate:
    """Verify an implementation: every property, in every world, over drawn cases.

    >>> from verified_losses.properties import certify
    >>> certify("mypackage.losses:MyLoss", "clip", world="1", max_examples=5).verdict  # doctest: +SKIP
    'holds'

    Args:
        target: "package.module:Name", "path/to/file.py:Name", or a class or function that other processes can
            import by its name. It runs in processes of its own.
        contract: what it must do: one of `names.CONTRACTS`, or a formula of your own, as it is or as
            "file.py:name"; or "step": it makes a training step.
        convention: which gradients it is held to: "exact", or those of "open_clip", where the contract has
            the option.
        config: options to pin. It is given, and held to, no other value of them. A step is given them
            besides rank and world size.
        call: how it is called, where that is not found out: an expression of `target` and the names of the
            contract, as "target(scale * text @ image.T)".
        parameters: what its module holds itself, as "logit_scale=exp(t_prime)".
        features: "raw", "normalized" or "unit", where what it does with rows is not to be found out.
        widths: of features that it takes, where it does not take all.
        equal_rows: give every rank equally many rows.
        empty_ranks: now and then give some ranks of several no rows.
        interpret: run its Triton kernels on the CPU, in Triton's interpreter; cases stay small.
        strict: judge unequal rows that the target does not support, and a second derivative that raises, as
            defects; else they are among the certificate's `limits`.
        large: draw a batch just beyond 4,096 pairs instead of 1,024: it takes minutes, and 3 GB.
        inductor: compile it by torch.compile's inductor too, which takes minutes.
        world: where ranks run, as "1,sim:2-8,proc:2".
        device: where the tensors are, as "cpu,cuda:1"; "all" is the CPU and every GPU.
        dtypes: of the inputs; of a step, the default dtypes in which it runs, float64 and float32 if none are
            given.
        max_examples: cases drawn for each property; costly properties take a share of it.
        max_time: seconds for everything; None for as many as it takes.
        fail_fast: stop at the first property that does not hold.
        seed: the same seed draws the same cases.
        only: which properties, by name; * and ? stand for any text and any letter.
        skip: which properties not.
        counterexamples: where to write the smallest failing case of every defect, as a program to run.
        shard: verify one part of the whole, "i/n" with i from 1 to n; `verified-losses merge` makes one
            certificate of all. The environment is not asked.

    Returns:
        The certificate.

    Raises:
        NotCertified: a property does not hold, or could not be verified.
        TypeError: the target is neither text nor a class or function.
        ValueError: the target or an argument is unusable.
    """
    __tracebackhide__ = True
    if max_time is not None and not max_time > 0:
        raise Unusable("max_time", f"expected more than 0 seconds, got {max_time}")
    deadline = time.monotonic() + (math.inf if max_time is None else max_time)
    part = read_shard(shard, {})
    how = call, parameters, features, interpret, strict, large, inductor, widths, empty_ranks
    asked = _asked(target, contract, convention, config, equal_rows, dtypes, *how)
    places = working(some_devices(device))
    check_seed(seed)
    scope = world, max_examples, _listed(only), _listed(skip), places
    planned(unlooked(asked), *scope)  # wrong arguments raise before the target is imported
    targets = fitted(asked, world, places, deadline)
    ((_, subject),) = targets.values()
    arguments = Asked(seed, max_examples, world, devices=",".join(places))
    said = unasked(targets, world, *scope[2:])
    run = Run(targets, planned(targets, *scope), arguments, Known(), shard=part, unasked=said)
    verifier = Verifier(max_examples, seed, deadline)
    try:
        for finding in verifier.verify_all(run.own):
            run.findings.append(finding)
            if fail_fast and finding.verdict == "falsified":
                break
        run.defects = explain(run.findings, Path(counterexamples), deadline, verifier.benches)
    finally:
        subject.worlds().close()
    run.not_verified += [*left(verifier.benches), *left_out(run.own[len(run.findings) :])]
    record = run.record
    assert isinstance(record, Certificate)
    if record.verdict != "holds":
        not_run = [finding for finding in run.findings if finding.not_run]
        raise NotCertified(run.defects, not_run, seed, record)
    return record


def certification(
    target: str | Callable[..., Any],
    contract: str | Formula,
    *,
    world: str = WORLDS,
    device: str = CPU,
    max_examples: int = MAX_EXAMPLES,
    seed: int = 0,
    only: str | Sequence[str] | None = None,
    skip: str | Sequence[str] | None = None,
    counterexamples: str | Path = COUNTEREXAMPLES,
    **options: Any,
) -> "pytest.MarkDecorator":
    """Parametrize a test function under pytest: one test for each property and world.

    The function gets `check`, to be called:

        @certification(MyLoss, "clip", world="1,sim:2-4")
        def test_my_loss(check):
            check()

    Args:
        target: as for `certify`. It is looked at when the first test runs.
        contract: as for `certify`, and so are all the others.
        world: where ranks run.
        device: where the tensors are, as for `certify`. They are looked for when the first test runs.
        max_examples: cases drawn for each property.
        seed: of the cases.
        only: which properties.
        skip: which properties not.
        counterexamples: where to write programs.
        options: convention, config, call, parameters, features, widths, equal_rows, empty_ranks, strict,
            interpret, large, inductor and dtypes.

    Raises:
        TypeError: the target is neither text nor a class or function.
        ValueError: an argument is unusable.
    """
    import pytest

    asked = _asked(target, contract, **options)
    places = expand(some_devices(device))
    check_seed(seed)
    scope = world, max_examples, _listed(only), _listed(skip), places
    verifier, folder = Verifier(max_examples, seed), Path(counterexamples).absolute()
    found: dict[str, AnyCheck] | Unusable | None = None

    def ready() -> dict[str, AnyCheck]:
        nonlocal found
        if found is None:
            try:
                found = named(fitted(asked, world, working(places)))
            except Unusable as error:
                found = error
        if isinstance(found, Unusable):
            pytest.fail(str(found), pytrace=False)
        return found

    def named(targets: Targets) -> dict[str, AnyCheck]:
        return {f"{check.law.name}-{check.world.name}": check for check in planned(targets, *scope)}

    def of(name: str) -> Callable[[], None]:
        def check() -> None:
            __tracebackhide__ = True
            if name not in ready():
                pytest.skip(NOT_ITS_OWN[contract == STEP])
            conclude(verifier.verify(ready()[name]), folder)

        return check

    names = list(named(unlooked(asked)))
    return pytest.mark.parametrize("check", [of(name) for name in names], ids=names)


def _explained(defects: Sequence[Defect], prefix: str) -> list[str]:
    """Return what each defect is, in words; where there are several, under headings by whom they concern."""
    said, last = [], ""
    for defect in ranked(defects):
        words = explained(defect, prefix)
        if len(defects) > 1 and defect.concern != last:
            last = defect.concern
            words = f"{heading(last, prefix)}\n{words}"
        said.append(words)
    return said


def conclude(finding: AnyFinding, counterexamples: Path, prefix: str = "") -> None:
    """Give a finding to pytest; hints name arguments as options that begin with `prefix`, or as in code.

    Raises:
        NotCertified: the property does not hold, or could not be verified.
        pytest.skip.Exception: no case was drawn that it says something about.
    """
    import pytest

    __tracebackhide__ = True
    if finding.verdict == "falsified":
        raise NotCertified(explain([finding], counterexamples), [], finding.seed, prefix=prefix)
    if finding.not_run:
        raise NotCertified([], [finding], finding.seed)
    if finding.verdict == "skipped":
        pytest.skip(finding.reason)
    if finding.verdict == "limit":
        strict = f"{prefix}strict" if prefix else "strict=True"
        pytest.skip(f"a limit, no defect unless {strict}: {finding.limit}")


def _asked(
    target: str | Callable[..., Any],
    contract: str | Formula,
    convention: str = "exact",
    config: Mapping[str, Any] | None = None,
    equal_rows: bool = False,
    dtypes: str | Sequence[str] = DTYPES,
    call: str = "",
    parameters: str | Sequence[str] = (),
    features: str = "",
    interpret: bool = False,
    strict: bool = False,
    large: bool = False,
    inductor: bool = False,
    widths: Sequence[int] = (),
    empty_ranks: bool = False,
) -> Targets:
    name, pinned = _name(target), tuple((config or {}).items())
    contract = contract.name if isinstance(contract, Formula) else contract
    if contract == STEP:
        unused = {
            "convention": convention != "exact", "call": call, "parameters": parameters, "features": features,
            "widths": widths, "empty_ranks": empty_ranks, "interpret": interpret, "large": large,
            "inductor": inductor,
        }  # fmt: skip
        trainer = ask_step(name, pinned, equal_rows, _listed(dtypes), strict, unused)
        return {Target.of(name).name: (STEP, trainer)}
    asked = ask(
        name,
        contract,
        convention=convention,
        config=pinned,
        equal_rows=equal_rows,
        dtypes=_listed(dtypes),
        call=call,
        parameters=_listed(parameters),
        features=features,
        interpret=interpret,
        strict=strict,
        large=large,
        inductor=inductor,
        widths=widths,
        empty_ranks=empty_ranks,
    )
    return {Target.of(name).name: asked}


def _name(target: object) -> str:
    """Return a target as "module:Name"."""
    if isinstance(target, str):
        return target
    if not inspect.isclass(target) and not inspect.isroutine(target):
        expected = "expected module:Name, file.py:Name, a class or a function"
        raise TypeError(f"target: {expected}, got {type(target).__name__} {target!r}")
    module, name = target.__module__, target.__qualname__
    found: Any = sys.modules.get(module)
    for one in name.split("."):  # a class method, as Loss.from_config, is a new object each time
        found = getattr(found, one, None)
    if module == "__main__" or found != target:
        problem = "other processes must be able to import it by its name from its module"
        raise Unusable("target", f"{problem}, got {name} of {module}")
    return f"{module}:{name}"


def _listed(names: str | Sequence[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or [])
