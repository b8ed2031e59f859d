"""Arguments of the command, of code and of pytest: read and checked.

Imports no torch: a wrong argument is refused before torch is imported.
"""

import ast
import fnmatch
import importlib.util
import json
import math
import re
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .. import devices
from ..forms import Form, check_call, names_of, read_parameter
from ..names import (
    CONTRACTS,
    CONVENTIONS,
    DTYPES,
    FEATURE_KINDS,
    FORMULAS,
    ROWS_OF,
    STEP,
    STEP_DTYPES,
    Features,
    meant,
    values_of,
)
from ..own.formula import NoFormula, is_own
from ..step.target import Trainer
from ..subjects import Subject, Target
from ..worlds.specs import WorldSpec, parse

NOT_PINNED = {
    "convention": "the argument convention chooses it",
    "rank": "every rank of a world is given its own",
    "world_size": "the argument world chooses it",
    "group": "ranks talk in the default group",
}

STEP_WORLDS = ("single", "simulated", "processes")
"""The kinds of worlds that a training step runs in."""

Subjects = dict[str, tuple[str, Subject]]
"""By name: the contract, and what is held to it."""


class Unusable(ValueError):
    """An argument, or a target, is unusable.

    Args:
        argument: its name, as `certify` has it, in capitals where it is no option; empty for the target.
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
        if self.argument.isupper():  # it has a place, and no name before it
            return f"{self.argument}: {self.problem}"
        option = {"contract": "as", "dtypes": "dtype"}.get(self.argument, self.argument.replace("_", "-"))
        return f"{prefix}{option}: {self.problem}"


def ask(
    target: str,
    contract: str | None,
    *,
    convention: str = "exact",
    config: tuple[tuple[str, Any], ...] = (),
    equal_rows: bool = False,
    dtypes: Sequence[str] = DTYPES,
    call: str = "",
    parameters: Sequence[str] = (),
    features: str = "",
    interpret: bool = False,
    strict: bool = False,
    large: bool = False,
    inductor: bool = False,
    widths: Sequence[int] = (),
    empty_ranks: bool = False,
) -> tuple[str, Subject]:
    """Return the contract's name, and the target as a subject.

    What is not stated of `call`, `parameters` and `features` is found out by `fitted`.

    Raises:
        Unusable: an argument is. The target itself is not looked at: see `fitted`.
    """
    check_contract(contract, target)
    assert contract is not None
    contract = FORMULAS.get(contract, contract)
    if convention not in CONVENTIONS:
        raise Unusable("convention", f"expected one of {', '.join(CONVENTIONS)}, got {convention}")
    if convention != "exact" and "convention" not in values_of(contract):
        raise Unusable("convention", f"the contract {contract} has none: expected exact, got {convention}")
    check_config(contract, config)
    form = _form(contract, call, parameters)
    if features not in FEATURE_KINDS or (features and contract not in ROWS_OF):
        expected = ", ".join(FEATURE_KINDS[1:]) if contract in ROWS_OF else f"nothing for {contract}"
        raise Unusable("features", f"expected one of {expected}, got {features}")
    check_widths(contract, widths)
    rows: Features = features
    if interpret and importlib.util.find_spec("triton") is None:
        raise Unusable("interpret", "triton is not installed: pip install triton")
    return contract, Subject(
        target,
        (convention,),
        equal_rows,
        some_dtypes(dtypes),
        options=config,
        features=rows,
        form=form,
        interpret=interpret,
        strict=strict,
        large=large,
        inductor=inductor,
        widths=tuple(widths),
        empty_ranks=empty_ranks,
    )


def check_widths(contract: str, widths: Sequence[int]) -> None:
    """Check the widths of features that a target takes.

    Raises:
        Unusable: one is none, or the contract has no features.
    """
    if widths and contract not in ROWS_OF:
        raise Unusable("widths", f"expected nothing for {contract}, got {_joined(widths)}")
    if not all(is_whole(one, 1) for one in widths):
        raise Unusable("widths", f"expected whole numbers above 0, as 16,32, got {_joined(widths)}")


def read_widths(text: str) -> tuple[int, ...]:
    """Read widths of features, separated by commas.

    Raises:
        Unusable: one is no whole number above 0.
    """
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise Unusable("widths", f"expected whole numbers above 0, as 16,32, got {text!r}")
    return tuple(int(part) for part in parts)


def _joined(values: Sequence[object]) -> str:
    return ",".join(map(str, values))


def ask_step(
    target: str,
    options: tuple[tuple[str, Any], ...],
    equal_rows: bool,
    dtypes: Sequence[str],
    strict: bool,
    unused: Mapping[str, object],
) -> Trainer:
    """Return a target that makes a training step; it is not looked at: see `step.inspection`.

    Args:
        target: package.module:make_step or file.py:make_step.
        options: what it is given besides rank and world size.
        equal_rows: split rows equally alone.
        dtypes: the default dtypes to draw; all that a loss may have stand for all that a step may have.
        strict: judge rows that are split unequally as a defect.
        unused: options of the command that say nothing of a step, and what was given for them.

    Raises:
        Unusable: an argument is.
    """
    refuse(unused, "says nothing of a training step: leave it out")
    for name, _ in options:
        if name in ("rank", "world_size"):
            raise Unusable("config", f"{name} cannot be pinned: {NOT_PINNED[name]}")
    check_target(target)
    own = STEP_DTYPES if tuple(dtypes) == DTYPES else dtypes
    return Trainer(Subject(target), options, some_dtypes(own), strict=strict, even=equal_rows)


def refuse(unused: Mapping[str, object], why: str) -> None:
    """Refuse options that say nothing of what is asked for.

    Args:
        unused: what was given for them.
        why: what is wrong with them.

    Raises:
        Unusable: one was given.
    """
    for name, given in unused.items():
        if given:
            raise Unusable(name, why)


def step_worlds(world: str, places: Sequence[str], alone: bool = True) -> list[WorldSpec]:
    """Return the worlds of these names, in which a step runs.

    Args:
        world: the names.
        places: the devices that are asked for.
        alone: nothing but steps is verified, so that it must run in all of them.

    Raises:
        Unusable: there are no such worlds, or a step does not run there.
    """
    if devices.CPU not in places or (alone and len(places) > 1):
        raise Unusable("device", f"a step runs on the CPU alone: expected cpu, got {','.join(places)}")
    asked = some_worlds(world)
    found = [spec for spec in asked if spec.kind in STEP_WORLDS]
    if not found or (alone and len(found) < len(asked)):
        other = next(spec.name for spec in asked if spec not in found)
        raise Unusable("world", f"a step runs in 1, sim:2-8, proc:2 and the like, not in {other}")
    return found


def check_contract(contract: str | None, target: str = "") -> None:
    """Check that there is such a contract, shipped or of one's own, for a target.

    Raises:
        Unusable: there is none.
    """
    if contract is not None and is_own(contract):
        try:
            names_of(contract)
        except NoFormula as error:
            raise Unusable("contract", str(error)) from error
        except Exception as error:
            said = f"{contract}: raised {type(error).__name__} as it was imported: {error}"
            raise Unusable("contract", said, traceback.format_exc()) from error
    elif contract is None or contract not in {**CONTRACTS, **FORMULAS}:
        given = "nothing" if contract is None else f"{contract}{meant(contract, [*CONTRACTS, *FORMULAS])}"
        expected = f"one of {', '.join([*CONTRACTS, *FORMULAS])}, step, or file.py:name of a formula"
        if contract == STEP:
            expected, given = f"a contract of a loss: a step is verified by certify alone; {expected}", "step"
        fits = f"; `verified-losses inspect {target}` says which fits" if contract is None and target else ""
        raise Unusable("contract", f"expected {expected}, got {given}{fits}")


def _form(contract: str, call: str, parameters: Sequence[str]) -> Form:
    """Return the form that is stated."""
    if call:
        try:
            check_call(call, contract)
        except ValueError as error:
            raise Unusable("call", str(error)) from error
    held = []
    for text in parameters:
        try:
            held.append(read_parameter(text, contract))
        except ValueError as error:
            raise Unusable("parameter", str(error)) from error
    return Form(call, parameters=tuple(held))


def check_config(contract: str, config: tuple[tuple[str, Any], ...]) -> None:
    """Check the values of options that a contract knows.

    Raises:
        Unusable: an option cannot be pinned, or not to that value.
    """
    for name, value in config:
        if name in NOT_PINNED:
            raise Unusable("config", f"{name} cannot be pinned: {NOT_PINNED[name]}")
        allowed = values_of(contract).get(name)
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


def some_worlds(world: str, places: Sequence[str] = (devices.CPU,)) -> list[WorldSpec]:
    """Return the worlds of these names, on each of some devices.

    Raises:
        Unusable: there are no such worlds.
    """
    if not isinstance(world, str):
        raise Unusable("world", f"expected text, as '1,sim:2-8', got {type(world).__name__} {world!r}")
    try:
        return parse(world, places)
    except ValueError as error:
        raise Unusable("world", str(error)) from error


def some_devices(text: str) -> tuple[str, ...]:
    """Return the names of devices, in one form.

    Raises:
        Unusable: a part is no such name, or a device is not there, as far as that shows without torch.
    """
    try:
        names = devices.read(text)
    except ValueError as error:
        raise Unusable("device", str(error)) from error
    for name in names:
        if why := devices.ruled_out(name):
            raise Unusable("device", why)
    return names


def is_whole(value: object, least: int) -> bool:
    """Whether a value is a whole number, and no bool, of at least so much."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_max_examples(number: int) -> None:
    """Check how many cases are asked for.

    Raises:
        Unusable: it is no whole number, or less than one.
    """
    if not is_whole(number, 1):
        raise Unusable("max_examples", f"expected at least 1, got {number!r}")


def check_seed(number: int) -> None:
    """Check the seed of the cases.

    Raises:
        Unusable: it is no whole number, or negative.
    """
    if not is_whole(number, 0):
        raise Unusable("seed", f"expected 0 or more, got {number!r}")


def kept_laws(
    names: Sequence[str], only: Sequence[str] | None, skip: Sequence[str] | None
) -> tuple[str, ...]:
    """Return those of these names of laws that patterns keep.

    Raises:
        Unusable: a pattern matches none.
    """
    for argument, patterns in (("only", only), ("skip", skip)):
        for pattern in patterns or []:
            if not fnmatch.filter(names, pattern):
                got = f"{pattern!r}{meant(pattern, names)}"
                raise Unusable(argument, f"expected some of {', '.join(names)}, got {got}")
    return tuple(name for name in names if is_kept(name, only, skip))


def is_kept(law: str, only: Sequence[str] | None, skip: Sequence[str] | None) -> bool:
    """Whether patterns keep a law."""
    wanted = any(fnmatch.fnmatch(law, one) for one in only or ["*"])
    return wanted and not any(fnmatch.fnmatch(law, one) for one in skip or [])


def check_target(text: str) -> None:
    """Check a target as far as that goes without importing it.

    Raises:
        Unusable: it is none, or its file or the package that it is in is not there.
    """
    target = Target.of(text)
    if not target.place or not target.name:
        raise Unusable("", f"{text}: expected MODULE:NAME or FILE.py:NAME, got {text!r}")
    if target.file:
        if not target.file.is_file():
            raise Unusable("", f"{text}: there is no file {target.file}")
        return
    package = target.place.partition(".")[0]
    try:
        is_there = package in sys.modules or importlib.util.find_spec(package) is not None
    except ValueError:
        is_there = False
    if not is_there:
        raise Unusable("", f"{text}: there is no module {package or target.place}")


def check_folder(folder: Path, argument: str) -> None:
    """Check that a folder can be written, or made where there is none.

    Raises:
        Unusable: it cannot.
    """
    _check_place(folder, folder, argument, "write into")


def check_file(file: Path | None, argument: str) -> None:
    """Check that a file can be written, where there is to be one.

    Raises:
        Unusable: it cannot.
    """
    if file is not None and file.is_dir():
        raise Unusable(argument, f"cannot write {file}: it is a folder")
    if file is not None:
        _check_place(file.parent, file, argument, "write")


def _check_place(folder: Path, path: Path, argument: str, what: str) -> None:
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir():
        raise Unusable(argument, f"cannot {what} {path}: {there} is not a folder")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        problem = f"cannot {what} {path}: {there} is not writable: {error.strerror or error}"
        raise Unusable(argument, problem) from error


def check_database(text: str) -> None:
    """Check where a database of failing cases is to be.

    Raises:
        Unusable: it is neither a folder that can be written nor redis://HOST/DB, or redis is not installed.
    """
    scheme, separator, _ = text.partition("://")
    if not text.strip():
        raise Unusable("database", f"expected a folder or redis://HOST/DB, got {text!r}")
    if not separator:
        check_folder(Path(text), "database")
        return
    shown = without_password(text)
    expected = f"expected a folder, redis://HOST/DB or rediss://HOST/DB, DB being a number, got {shown!r}"
    try:
        place = urlsplit(text)
        usable = place.hostname and (place.port is None or place.port > 0)
    except ValueError:
        usable = None
    if scheme not in ("redis", "rediss") or not usable or not re.fullmatch(r"/?[0-9]*", place.path):
        raise Unusable("database", expected)
    if importlib.util.find_spec("redis") is None:
        extra = "verified-losses[redis]"
        raise Unusable("database", f"{shown} needs the package redis: pip install '{extra}'")


def without_password(text: str) -> str:
    """Return a text without the user names and passwords in its addresses."""
    return re.sub(r"(rediss?://)[^@/\s]*@", r"\1***@", text)


def read_seconds(text: str) -> float:
    """Read how long everything may take.

    Raises:
        Unusable: it is no such time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|)", text.strip())
    if not match or float(match[1]) <= 0:
        raise Unusable("max_time", f"expected seconds, or a time like 60s, 5m or 1h, got {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]
