"""What people ask for, however they ask, made into the checks to run."""

import ast
import fnmatch
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hypothesis import Verbosity, find, settings

from ..cases import CONVENTIONS, DTYPES
from ..contracts import Contract, contracts
from ..laws import laws
from ..running import read_signature
from ..subjects import Subject
from ..worlds import WorldError
from ..worlds.specs import SINGLE, parse
from ..worlds.table import KINDS
from .certifier import Check, checks

WORLDS = "1,sim:2-8,proc:2"
MAX_EXAMPLES = 25
COUNTEREXAMPLES = Path("build/counterexamples")
NOT_PINNED = {
    "convention": "the argument convention chooses it",
    "rank": "every rank of a world is given its own",
    "world_size": "the argument world chooses it",
    "group": "ranks talk in the default group",
}

Subjects = dict[str, tuple[str, Subject]]
"""By name: the contract, and what is held to it."""


class Unusable(ValueError):
    """An argument, or a target, is unusable.

    Args:
        argument: its name, as `certify` has it; empty where it is the target.
        problem: what is wrong with it.
        detail: the target's own traceback.
    """

    def __init__(self, argument: str, problem: str, detail: str = "") -> None:
        super().__init__(argument, problem, detail)
        self.argument = argument
        self.problem = problem
        self.detail = detail

    def __str__(self) -> str:
        said = f"{self.argument}: {self.problem}" if self.argument else self.problem
        return f"{said}\n{self.detail}" if self.detail else said

    def as_option(self, prefix: str) -> str:
        """Return it, without the detail, as said of an option."""
        if not self.argument:
            return self.problem
        option = {"contract": "as", "dtypes": "dtype"}.get(self.argument, self.argument.replace("_", "-"))
        return f"{prefix}{option}: {self.problem}"


def ask(
    target: str,
    contract: str | None,
    convention: str = "exact",
    config: tuple[tuple[str, Any], ...] = (),
    equal_rows: bool = False,
    dtypes: Sequence[str] = DTYPES,
) -> tuple[str, Subject]:
    """Return the contract's name, and the target as a subject.

    Raises:
        Unusable: an argument is. The target itself is not looked at: see `fitted`.
    """
    if contract is None or contract not in contracts():
        given = "nothing" if contract is None else contract
        raise Unusable("contract", f"expected one of {', '.join(contracts())}, got {given}")
    if convention not in CONVENTIONS:
        raise Unusable("convention", f"expected one of {', '.join(CONVENTIONS)}, got {convention}")
    if convention != "exact" and not contracts()[contract].conventions:
        raise Unusable("convention", f"the contract {contract} has none: expected exact, got {convention}")
    check_config(contract, config)
    return contract, Subject(target, (convention,), equal_rows, some_dtypes(dtypes), options=config)


def check_config(contract: str, config: tuple[tuple[str, Any], ...]) -> None:
    """Check the values of options that a contract knows.

    Raises:
        Unusable: an option cannot be pinned, or not to that value.
    """
    for name, value in config:
        if name in NOT_PINNED:
            raise Unusable("config", f"{name} cannot be pinned: {NOT_PINNED[name]}")
        allowed = contracts()[contract].values.get(name)
        if isinstance(allowed, tuple):
            if not any(type(value) is type(one) and value == one for one in allowed):
                expected = f"one of {', '.join(json.dumps(one) for one in allowed)}"
                raise Unusable("config", f"{name}: expected {expected}, got {_shown(value)}")
        elif allowed is not None:
            numbers = (int,) if allowed is int else (int, float)
            if isinstance(value, bool) or not isinstance(value, numbers) or not math.isfinite(value):
                kind = "an int" if allowed is int else "a number"
                raise Unusable("config", f"{name}: expected {kind}, got {_shown(value)}")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else repr(value)


def some_dtypes(names: Sequence[str]) -> tuple[str, ...]:
    """Return the dtypes of these names.

    Raises:
        Unusable: there is no such dtype, or there are none.
    """
    if not names or not set(names) <= set(DTYPES):
        raise Unusable("dtypes", f"expected some of {', '.join(DTYPES)}, got {','.join(map(str, names))}")
    return tuple(names)


def read_config(text: str) -> tuple[tuple[str, Any], ...]:
    """Read name=value pairs; a value is written as in JSON or Python, and text where it is neither.

    Raises:
        Unusable: they are not such pairs.
    """
    pairs = []
    for part in filter(None, text.split(",")):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name.isidentifier():
            raise Unusable("config", f"expected name=value,..., got {part!r}")
        pairs.append((name, _value(value)))
    return tuple(pairs)


def _value(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text


def plan(
    subjects: Subjects,
    world: str = WORLDS,
    max_examples: int = MAX_EXAMPLES,
    only: Sequence[str] | None = None,
    skip: Sequence[str] | None = None,
) -> list[Check]:
    """List the checks: the same arguments, the same list. No target is looked at.

    Raises:
        Unusable: an argument is.
    """
    try:
        worlds = parse(world)
    except ValueError as error:
        raise Unusable("world", str(error)) from error
    if max_examples < 1:
        raise Unusable("max_examples", f"expected at least 1, got {max_examples}")
    kept = _kept(only, skip)
    planned = [check for check in checks(subjects, worlds) if check.law.name in kept]
    if not planned:
        applies = "no property that is asked for applies there"
        raise Unusable("", f"nothing to verify for {', '.join(subjects)} in world {world}: {applies}")
    return planned


def _kept(only: Sequence[str] | None, skip: Sequence[str] | None) -> set[str]:
    """Return the names of the laws to verify."""
    names = [law.name for law in laws()]
    for argument, patterns in (("only", only), ("skip", skip)):
        for pattern in patterns or []:
            if not fnmatch.filter(names, pattern):
                raise Unusable(argument, f"expected some of {', '.join(names)}, got {pattern!r}")
    wanted = [name for name in names if any(fnmatch.fnmatch(name, one) for one in only or ["*"])]
    return {name for name in wanted if not any(fnmatch.fnmatch(name, one) for one in skip or [])}


def fitted(subjects: Subjects) -> Subjects:
    """Return the subjects, each asked only for what it takes. The targets are imported and constructed.

    Raises:
        Unusable: a target cannot be verified.
    """
    return {label: (name, _fitted(subject, contracts()[name])) for label, (name, subject) in subjects.items()}


def _fitted(asked: Subject, contract: Contract) -> Subject:
    quiet = settings(database=None, deadline=None, verbosity=Verbosity.quiet)
    size = contract.smallest_world
    simplest = find(contract.cases(replace(asked, options=()), size), lambda case: True, settings=quiet)
    world = asked.worlds().open(SINGLE)
    try:
        (signature,) = world.run(read_signature, asked, contract, simplest)
    except WorldError as error:
        (rank,) = error.ranks
        happened = {"raised": "raised", "hung": "hung"}.get(rank.state, "ended its process")
        problem = f"{asked.target}: {happened} as it was imported or constructed"
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
    for kind in KINDS.values():
        ran = {check.label for check in planned if check.world.kind == kind.name}
        without = [label for label in labels if label not in ran]
        if kind.title and not ran:
            why = kind.missing() or f"not requested (add {kind.prefix}:2 to the worlds)"
            lines.append(f"{kind.title}: {why}")
        elif kind.title and without:
            lines.append(f"{kind.title}: {', '.join(without)} did not run over it")
    on_cpu = "not verified: every tensor was on the CPU"
    return [*lines, f"CUDA: {on_cpu if torch.cuda.is_available() else 'no device here'}"]
