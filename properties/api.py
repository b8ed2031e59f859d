"""How people ask from code: `from properties import certify`."""

import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .cases import DTYPES
from .certifier import Certifier, Check, Finding, verify_all
from .known import Known
from .plan import MAX_EXAMPLES, WORLDS, Unusable, ask, fitted, not_verified, plan
from .report import Asked, Certificate, certificate, explained

if TYPE_CHECKING:
    import pytest


class NotCertified(AssertionError):
    """A target is falsified, or something that was asked for could not run; the message lists what and why.

    Args:
        findings: those that are not as they should be.
        record: the certificate, where there is one.
    """

    def __init__(self, findings: Sequence[Finding], record: Certificate | None = None) -> None:
        seeds = {finding.seed for finding in findings}
        said = [*map(explained, findings), f"seed {', '.join(map(str, seeds))}"]
        super().__init__("\n\n".join(said))
        self.findings = tuple(findings)
        self.certificate = record


def certify(
    target: str | Callable[..., Any],
    contract: str,
    *,
    convention: str = "exact",
    config: Mapping[str, Any] | None = None,
    equal_rows: bool = False,
    world: str = WORLDS,
    dtypes: Sequence[str] = DTYPES,
    max_examples: int = MAX_EXAMPLES,
    max_time: float | None = None,
    seed: int = 0,
    only: str | Sequence[str] | None = None,
    skip: str | Sequence[str] | None = None,
) -> Certificate:
    """Verify an implementation: every property, in every world, over drawn cases.

    >>> from properties import certify
    >>> certify("mypackage.losses:MyLoss", "clip", world="1", max_examples=5).verdict  # doctest: +SKIP
    'holds'

    Args:
        target: "package.module:Name", "path/to/file.py:Name", or a class or function that other processes can
            import by its name. It runs in processes of its own.
        contract: what it must do: clip, coca, distill, siglip, gather or exchange.
        convention: which gradients it is held to: "exact", or those of "open_clip".
        config: options to pin. It is given, and held to, no other value of them.
        equal_rows: give every rank equally many rows.
        world: where ranks run, as "1,sim:2-8,proc:2".
        dtypes: of the inputs.
        max_examples: cases drawn for each property; costly properties take a share of it.
        max_time: seconds for everything; None for as many as it takes.
        seed: the same seed draws the same cases.
        only: which properties, by name; * and ? stand for any text and any letter.
        skip: which properties not.

    Returns:
        The certificate.

    Raises:
        NotCertified: a property does not hold, or could not be verified.
        TypeError: the target is neither text nor a class or function.
        ValueError: the target or an argument is unusable.
    """
    if max_time is not None and not max_time > 0:
        raise Unusable("max_time", f"expected more than 0 seconds, got {max_time}")
    planned = fitted(
        _planned(target, contract, convention, config, equal_rows, world, dtypes, max_examples, only, skip)
    )
    subject = planned[0].subject
    try:
        findings = list(verify_all(planned, max_examples, seed, math.inf if max_time is None else max_time))
    finally:
        subject.worlds().close()
    asked = Asked(seed, max_examples, world)
    record = certificate(subject, contract, findings, asked, Known(), not_verified(), complete=True)
    if record.verdict != "holds":
        raise NotCertified([one for one in findings if one.verdict == "falsified" or one.not_run], record)
    return record


def certification(
    target: str | Callable[..., Any], contract: str, *, seed: int = 0, **options: Any
) -> "pytest.MarkDecorator":
    """Parametrize a test function under pytest: one test for each property and world.

    The function gets `check`, to be called:

        @certification(MyLoss, "clip", world="1,sim:2-4")
        def test_my_loss(check):
            check()

    Args:
        target: as for `certify`. It is looked at when the first test runs.
        contract: as for `certify`.
        seed: as for `certify`.
        options: the other options of `certify`, but for `max_time`.

    Raises:
        TypeError: the target is neither text nor a class or function.
        ValueError: an argument is unusable.
    """
    import pytest

    planned = _planned(target, contract, **options)
    certifier = Certifier(options.get("max_examples", MAX_EXAMPLES), seed)
    found: list[Check] | Unusable | None = None

    def ready() -> list[Check]:
        nonlocal found
        if found is None:
            try:
                found = fitted(planned)
            except Unusable as error:
                found = error
        if isinstance(found, Unusable):
            pytest.fail(str(found), pytrace=False)
        return found

    def numbered(number: int) -> Callable[[], None]:
        def check() -> None:
            __tracebackhide__ = True
            conclude(certifier.verify(ready()[number]))

        return check

    return pytest.mark.parametrize(
        "check",
        [numbered(number) for number in range(len(planned))],
        ids=[f"{check.law.name}-{check.world.name}" for check in planned],
    )


def conclude(finding: Finding) -> None:
    """Give a finding to pytest.

    Raises:
        NotCertified: the property does not hold, or could not be verified.
        pytest.skip.Exception: no case was drawn that it says something about.
    """
    import pytest

    __tracebackhide__ = True
    if finding.verdict == "falsified" or finding.not_run:
        raise NotCertified([finding])
    if finding.verdict == "skipped":
        pytest.skip(finding.reason)


def _planned(
    target: str | Callable[..., Any],
    contract: str,
    convention: str = "exact",
    config: Mapping[str, Any] | None = None,
    equal_rows: bool = False,
    world: str = WORLDS,
    dtypes: Sequence[str] = DTYPES,
    max_examples: int = MAX_EXAMPLES,
    only: str | Sequence[str] | None = None,
    skip: str | Sequence[str] | None = None,
) -> list[Check]:
    name = _name(target)
    asked = ask(name, contract, convention, tuple((config or {}).items()), equal_rows, _listed(dtypes))
    label = name.rpartition(":")[2]
    return plan({label: asked}, world, max_examples, _listed(only or ()), _listed(skip or ()))


def _name(target: object) -> str:
    """Return a target as "module:Name"."""
    if isinstance(target, str):
        return target
    if not inspect.isclass(target) and not inspect.isroutine(target):
        expected = "expected module:Name, file.py:Name, a class or a function"
        raise TypeError(f"target: {expected}, got {type(target).__name__} {target!r}")
    module, name = target.__module__, target.__qualname__
    if module == "__main__" or vars(sys.modules.get(module, object)).get(name) is not target:
        problem = "other processes must be able to import it by its name from its module"
        raise Unusable("target", f"{problem}, got {name} of {module}")
    return f"{module}:{name}"


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)
