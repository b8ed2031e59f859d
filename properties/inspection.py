"""The inspection: finds out how a target is called before anything is judged.

It constructs the target, calls it in the forms that its parameters allow, on two small cases, and keeps the
form whose values are the oracle's; where none is, the first in which it can be called at all.
"""

import ast
import contextlib
import functools
import inspect
import itertools
import json
import math
import operator
import shlex
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from verified_losses.oracles.held import HELD as MAPS
from verified_losses.oracles.held import OF_SCALE

from . import adapter, devices
from .cases import PAD_IDS, Case
from .contracts import Contract, accepted, entry
from .examples import Example
from .forms import HELD, KNOWN_MAPS, NAMES, OPTIONS, SOFT, Form
from .forms_known import (
    HOLDERS,
    MOST,
    calls,
    constructions,
    guesses,
    holdings,
    ignores_by_another_name,
    is_called_itself,
    keys_read,
    parameters_of,
    role_of,
)
from .keywords import NEEDED, keywords_read
from .names import Features
from .own.forms import own_forms
from .reference import reference
from .running import Signature, build, call_of, inputs, read_signature, scalars_of
from .standalone.acts import read, to_array
from .subjects import Subject, Target, Unresolved
from .worlds import exception_of


@dataclass(frozen=True)
class Inspection:
    """What is found out about a target.

    Args:
        signature: which of the contract's arguments it takes, or why it is unusable.
        form: how it is constructed and called.
        features: what it does with rows.
        matches: whether its values are the oracle's in this form.
        defaults: arguments of its constructor that it is not given, with their defaults.
        single: whether it computes in float32 what it is given in float64.
        detail: the traceback of the call that came furthest, where none returned a loss.
    """

    signature: Signature
    form: Form = field(default_factory=Form)
    features: Features = ""
    matches: bool = False
    defaults: tuple[tuple[str, str], ...] = ()
    detail: str = ""
    single: bool = False
    pad_ids: tuple[int, ...] = ()
    """The labels that the target takes for padding, where it raises for others."""
    refuses_one: str = ""
    """What the target raises for a batch of one row, and not for others."""


@dataclass(frozen=True)
class Tried:
    """What came of one form."""

    form: Form
    features: Features
    matches: bool = False
    error: str = ""
    instead: str = ""
    """What to call where another number that was returned is the oracle's, and this one is not."""
    invariant: bool = False
    """Whether rows of twice the length gave the same."""
    distance: float = 0.0
    """How far its first term is from the oracle's at most, in proportion."""


def import_target(rank: int, world_size: int, subject: Subject) -> None:
    """Import a target, so that it is known what raises; one that is missing is found later.

    Raises:
        Exception: the target raised it as it was imported.
    """
    with contextlib.suppress(Unresolved):
        subject.resolve()


def inspect_target(
    rank: int, world_size: int, subject: Subject, contract: Contract, probes: list[Case]
) -> Inspection:
    """Find the form of a target.

    Args:
        rank: of this process.
        world_size: number of ranks.
        subject: its `form` and `features` are kept where they are stated.
        contract: what it is held to.
        probes: the cases to call it with.

    Raises:
        Exception: the target raised it as it was imported or constructed.
    """
    devices.use(probes[0].device_of(rank))
    signature = read_signature(rank, world_size, subject, contract, probes[0])
    if not contract.is_loss or contract.name not in NAMES or signature.hopeless:
        return Inspection(signature)
    target = subject.resolve()
    if missing := _unstated(target, contract, subject, probes[0]):
        return Inspection(replace(signature, unusable=missing))
    if signature.unusable and inspect.isclass(target):
        passed = {**contract.constructor(probes[0]), **dict(subject.options)}
        signature = replace(signature, options=tuple(accepted(target, passed)))
    pinned = dict(subject.options)
    probes = [replace(probe, options=tuple((dict(probe.options) | pinned).items())) for probe in probes]
    defaults = _defaults(target, contract, subject, probes[0])
    candidates = _candidates(target, contract, subject, probes[0], signature)
    listed = list(itertools.islice(candidates, MOST))
    tried = _try(listed, target, contract, subject, probes, signature.options)
    if contract.whole and (tried is None or tried.error):
        names = ", ".join(one for one in NAMES[contract.name] if one not in contract.sizes_held)
        said = f"{Target.of(subject.target).name} cannot be called with {names}, by name or in order"
        said += f": {exception_of(tried.error)}" if tried else ""
        unknown = _unknown(target, contract, subject, replace(signature, unusable=said))
        return Inspection(replace(signature, unusable=unknown), detail=tried.error if tried else "")
    if tried is None and signature.unusable:
        unknown = _unknown(target, contract, subject, signature)
        return Inspection(replace(signature, unusable=unknown), defaults=defaults)
    if tried is None or (tried.error and not signature.unusable):
        return Inspection(signature, defaults=defaults)
    if tried.error:
        if _raised(tried):
            raised = f"{tried.form.call or Target.of(subject.target).name} raised, as every other call did"
            said = f"{raised}: {exception_of(tried.error)} ({WIDTHS})"
            signature = replace(signature, unusable=said)
        return Inspection(
            replace(signature, unusable=_unknown(target, contract, subject, signature)),
            defaults=defaults,
            detail=tried.error,
        )
    form = tried.form
    if tried.instead:
        several = f"of the numbers that it returns {form.call} is not the oracle's, and {tried.instead} is"
        stated = " or ".join(f"--call {shlex.quote(one)}" for one in (tried.instead, form.call))
        return Inspection(
            replace(signature, unusable=f"{several}: state which is the loss, by {stated}"), form
        )
    if not form.is_plain:
        bias = "logit_bias" in form.inputs(contract.name)
        signature = replace(signature, unusable="", bias=bias, output_dict=False)
        if not tried.matches and not takes_scale(form, contract, signature.options):
            why = _unknown(target, contract, subject, replace(signature, unusable="it takes no logit_scale"))
            return Inspection(replace(signature, unusable=why), form, defaults=defaults)
    if not tried.matches and (unread := _scale_unread(tried, target, contract, subject, probes, signature)):
        return Inspection(replace(signature, unusable=unread), form, defaults=defaults)
    bound = {name for name, _ in form.arguments} | {form.rows}
    if not form.constructed:
        bound |= passed_by(form.call, target)
    return Inspection(
        signature,
        form,
        tried.features,
        tried.matches,
        tuple(one for one in defaults if one[0] not in bound),
        single=tried.matches and _is_single(tried, target, contract, subject, probes, signature.options),
        pad_ids=_pad_ids(tried, target, contract, subject, probes[0], signature.options),
        refuses_one=_refused(
            tried, target, contract, subject, replace(probes[0], rows=(1,)), signature.options
        ),
    )


WIDTHS = "--widths states the widths of features that it takes, --features unit that they are normalised"

SCALES = np.geomspace(1e-2, 1e3, 121)
"""Between which a scale is sought."""
BISECTIONS = 40
"""Of an interval between two of them: more digits than float32 has."""
DIGITS = math.sqrt(np.finfo("float32").eps)
"""How near, in proportion, two numbers are that are the same: half of float32's digits."""


def _scale_unread(
    tried: Tried,
    target: Any,
    contract: Contract,
    subject: Subject,
    probes: list[Case],
    signature: Signature,
) -> str:
    """Return why a target cannot be verified whose values are the oracle's of a scale that it is not given.

    That scale is fixed, or made of a parameter by an unknown map. Nothing is returned where what a parameter
    holds is stated or does not move the scale, where another known map than that of its name makes the scale,
    where the exponential of what is held comes in twice, or where no scale gives all cases their values.
    """
    form, options = tried.form, signature.options
    holding = [path for path, name in form.parameters if name in HELD | SOFT]
    if contract.whole or subject.form.parameters:
        return ""
    if takes_scale(form, contract, options) and not holding:
        return ""
    asked = replace(subject, form=form, features=tried.features)
    contract = contract.in_form(form)
    found = []
    for given in (probe.scale for probe in probes):
        alike = [replace(probe, scale=given, bias=probes[0].bias) for probe in probes]
        cases = [fitting(one, form, tried.features, contract, options) for one in alike]
        try:
            outputs = [_value(case, asked, contract, target) for case in cases]
        except Exception:
            return ""
        scale = _scale_of(cases, outputs, contract)
        if scale is None:
            return ""
        found.append(scale)
        kind = dict(cases[0].held).get("logit_scale")
        raw = OF_SCALE[kind](given) if kind else given
        if holding and any(_is_near(scale, made(raw)) for made in (float, *MAPS.values())):
            return ""
        if kind == "exp" and _is_near(scale, given**2):  # it multiplies by the scale twice
            return ""
    if holding and _is_near(*found):
        return ""
    owned = ", ".join(holding or scalars_of(build(contract, form, target, cases[0], 0, 1)))
    if not owned:
        return f"its values are the oracle's of a scale of {found[0]:.4g}, and it takes none"
    return (
        f"its values are the oracle's, but it makes the scale of its parameter {owned} by an unknown map: "
        f"known are {KNOWN_MAPS}. If one of these is meant, state it, as --parameter "
        "'logit_scale=exp(NAME)'; else verify a function that takes the scale"
    )


def _scale_of(cases: list[Case], outputs: list[Any], contract: Contract) -> float | None:
    """Return the scale with which the oracle has a target's values in all cases, found by bisection."""

    def above(scale: float, case: Case, output: Any) -> float:
        return _above(contract, replace(case, scale=float(scale), held=()), output)

    first = cases[0], outputs[0]
    is_above = [above(scale, *first) > 0 for scale in SCALES]
    for (low, high), (begins, ends) in zip(
        itertools.pairwise(SCALES), itertools.pairwise(is_above), strict=True
    ):
        if begins == ends:
            continue
        for _ in range(BISECTIONS):
            middle = math.sqrt(low * high)
            if (above(middle, *first) > 0) == begins:
                low = middle
            else:
                high = middle
        if all(abs(above(low, *one)) <= DIGITS for one in zip(cases, outputs, strict=True)):
            return float(low)
    return None


def _is_near(one: float, other: float) -> bool:
    """Whether two scales are the same."""
    return math.isclose(one, other, rel_tol=DIGITS)


def _pad_ids(
    tried: Tried,
    target: Any,
    contract: Contract,
    subject: Subject,
    probe: Case,
    options: tuple[str, ...],
) -> tuple[int, ...]:
    """Return the labels of padding with which a call returns, where one raises outside the vocabulary."""
    told = {"pad_id", "ignore_index"} & {*options, *tried.form.names()}
    if not told or not tried.matches or told & set(dict(subject.options)):
        return ()
    taken = []
    for pad_id in PAD_IDS:
        padded = replace(probe, pad_id=pad_id, pads="inside")
        with contextlib.suppress(Exception):
            _value_in_form(tried, target, contract, subject, padded, options)
            taken.append(pad_id)
    return tuple(taken) if len(taken) < len(PAD_IDS) else ()


def _refused(
    tried: Tried,
    target: Any,
    contract: Contract,
    subject: Subject,
    probe: Case,
    options: tuple[str, ...],
) -> str:
    """Return what a target raises for a case that it refuses, by `raise` or `assert`; else nothing."""
    if not contract.defined(probe):
        return ""
    try:
        _value_in_form(tried, target, contract, subject, probe, options)
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1].line or ""
        if line.startswith(("raise", "assert")):
            return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _is_single(
    tried: Tried,
    target: Any,
    contract: Contract,
    subject: Subject,
    probes: list[Case],
    options: tuple[str, ...],
) -> bool:
    """Whether the target computes in float32 what it is given in float64."""
    if not {"float64", "float32"} <= set(subject.dtypes):
        return False
    asked = replace(subject, form=tried.form, features=tried.features)
    # numbers that float32 rounds
    wide = [replace(probe, dtype="float64", pattern="unit", scale=3.7) for probe in probes]
    cases = [fitting(case, tried.form, tried.features, contract, options) for case in wide]
    try:
        outputs = [_value(case, asked, contract, target) for case in cases]
        loss = build(contract, tried.form, target, cases[0], 0, 1)
    except Exception:
        return False
    terms = [one for output in outputs for one in read(output, contract.terms)[1].values()]
    owned = [*loss.parameters(), *loss.buffers()] if isinstance(loss, torch.nn.Module) else []
    if not any(one.dtype == torch.float32 for one in [*terms, *owned]):
        return False  # what is off by as much as float32 rounds is off for another reason
    return not all(_equals(contract, case, output) for case, output in zip(cases, outputs, strict=True))


def _candidates(
    target: Any, contract: Contract, subject: Subject, case: Case, signature: Signature
) -> Iterator[Form]:
    """Yield the forms that a target may have, the likeliest first."""
    stated = subject.form
    if contract.whole:
        yield from own_forms(target, contract, subject, case)
        return
    passed = {**contract.constructor(case), **dict(subject.options), "rank": 0, "world_size": 1}
    if not signature.unusable and stated.is_plain and not ignores_by_another_name(target, passed):
        yield Form()
    taken = {one.name for one in parameters_of(target)}
    if is_called_itself(target):
        known = calls(target, contract.name, (), keys_read(target), dict(stated.parameters))
        for call in [stated.call] if stated.call else known:
            yield Form(call, constructed=False)
        return
    bound = tuple(pair for pair in stated.parameters if pair[0] in taken)
    parameters = tuple(pair for pair in stated.parameters if pair[0] not in taken)
    later: list[Form] = []
    for found, rows in constructions(target, contract.name, (*passed, *dict(bound))):
        arguments = (*bound, *found)
        if any(
            one.required and one.name not in {*passed, *dict(arguments), rows}
            for one in parameters_of(target)
        ):
            continue
        try:
            loss = build(contract, Form("", arguments, rows=rows), target, case, 0, 1)
            function = entry(loss)
            scalars = scalars_of(loss)
        except Exception:
            continue
        given = [name for _, name in arguments]
        held_so = [held for held in [parameters] if held] or [
            held for held in holdings(scalars, contract.name, given) if held
        ]
        guessed = () if parameters else guesses(scalars, contract.name, given)
        for held in dict.fromkeys([*held_so, (), *guessed]):
            names = [*given, *(name for _, name in held)]
            allowed = dict.fromkeys(calls(function, contract.name, names, keys_read(function)))
            for call in [stated.call] if stated.call else allowed:
                form = Form(call, arguments, tuple(held), rows=rows)
                drops = held_so and not held and not any(name in HELD | SOFT for name in form.names())
                if drops or not form.is_once(contract.name):
                    continue  # what a module holds is the scale, unless the call gives one
                if found and any(holdings(scalars, contract.name, [])):
                    later.append(form)  # what its constructor gets is what a parameter of it begins with
                else:
                    yield form
    yield from later


def _unstated(target: Any, contract: Contract, subject: Subject, case: Case) -> str:
    """Return why what is stated of parameters cannot be; nothing where it can."""
    taken = [one.name for one in parameters_of(target)]
    free = [path for path, _ in subject.form.parameters if path not in taken]
    if not free:
        return ""
    name = Target.of(subject.target).name
    if is_called_itself(target):
        return f"parameter: {name} takes no {', '.join(free)}: it takes {', '.join(taken)}"
    try:
        loss = build(contract, Form(), target, case, 0, 1)
    except Exception:
        return ""  # it needs what is not known yet
    owned = list(dict(loss.named_parameters())) if isinstance(loss, torch.nn.Module) else []
    absent = [path for path in free if path not in owned]
    if not absent:
        return ""
    has = f"its parameters are {', '.join(owned)}" if owned else "it has no torch.nn.Parameter"
    gets = f", and its constructor takes {', '.join(taken)}" if taken else ""
    return f"parameter: {name} has no parameter {', '.join(absent)}: {has}{gets}"


def _try(
    candidates: list[Form],
    target: Any,
    contract: Contract,
    subject: Subject,
    probes: list[Case],
    options: tuple[str, ...],
) -> Tried | None:
    """Return the first form whose values are the oracle's, else one that returned a loss, else any."""
    modes = [subject.features] if subject.features else modes_of(contract)
    results: list[Tried] = []
    parts: list[Tried] = []
    for features in modes:
        # rows of no unit norm may be what it refuses
        failed = {one.form for one in results if one.error and (features != "unit" or not _raised(one))}
        for form in candidates:
            if form in failed:
                continue
            cases = [fitting(case, form, features, contract, options) for case in probes]
            if form.is_plain and "logit_bias" in contract.differentiable:
                cases.append(replace(cases[-1], bias=None))  # it has to do without, or be given one always
            for tried in _attempt(form, features, target, contract, subject, cases):
                if tried.instead:
                    parts.append(tried)
                elif tried.matches:
                    return tried
                else:
                    results.append(tried)
    if parts:
        return parts[0]
    for first in results:
        if not first.error:
            tried = min(
                (one for one in results if _holds_otherwise(one, first)), key=lambda one: one.distance
            )
            normalises = tried.invariant and not subject.features and "normalized" in modes
            return replace(tried, features="normalized") if normalises else tried
    return results[0] if results else None


def _raised(tried: Tried) -> bool:
    """Whether the target raised, and not as the form is no way to call it."""
    last = tried.error.rstrip().rpartition("\n")[2]
    return tried.error.startswith("Traceback") and not last.startswith("TypeError")


def _holds_otherwise(one: Tried, first: Tried) -> bool:
    """Whether a form that returned a loss is another, or holds a scale where that holds a temperature."""
    same = replace(one.form, parameters=()) == replace(first.form, parameters=())
    alike = [tuple((path, name.replace("temperature", "scale")) for path, name in tried.form.parameters)
             for tried in (one, first)]  # fmt: skip
    return same and alike[0] == alike[1] and one.features == first.features and not one.error


def modes_of(contract: Contract) -> list[Features]:
    """Return what the losses of a contract may do with rows, what it says first."""
    if not contract.rows:
        return [""]
    return ["", "raw" if contract.features == "normalized" else "normalized", "unit"]


def _attempt(
    form: Form, features: Features, target: Any, contract: Contract, subject: Subject, cases: list[Case]
) -> Iterator[Tried]:
    """Yield what comes of a form, for each way to read what it returns."""
    whole_contract, contract = contract, contract.in_form(form)
    asked = replace(subject, form=form, features=features)
    try:
        outputs = [_value(case, asked, contract, target) for case in cases]
    except Exception:
        yield Tried(form, features, error=traceback.format_exc())
        return
    if form.is_plain and len(contract.terms) == 1 and isinstance(outputs[0], tuple | list):
        yield Tried(form, features, error=f"returns no loss, but {_shown(outputs[0])}")
        return
    if form.is_plain and len(contract.terms) == 1 and not _is_read(outputs[0], contract.terms):
        yield Tried(form, features, error=f"returns no loss, but {_shown(outputs[0])}")
        return
    if form.is_plain and (len(contract.terms) == 1 or has_all(outputs[0], contract.terms)):
        yield _compared(form, features, contract, cases, outputs, asked, target)
        return
    wholes = [] if form.is_plain else read_forms(form, outputs[0], whole_contract)
    if not wholes:
        called = form.call or "the target"
        yield Tried(form, features, error=f"{called} returns no loss, but {_shown(outputs[0])}")
    for place, whole in enumerate(wholes):
        contract = whole_contract.in_form(whole)
        asked = replace(subject, form=whole, features=features)
        try:
            read_outputs = [_value(case, asked, contract, target) for case in cases]
        except Exception:
            yield Tried(whole, features, error=traceback.format_exc())
            continue
        tried = _compared(whole, features, contract, cases, read_outputs, asked, target)
        if not place or len(whole_contract.terms) > 1:
            yield tried
        elif tried.matches:
            yield Tried(wholes[0], features, instead=whole.call)


def _is_read(output: Any, terms: tuple[str, ...]) -> bool:
    """Whether a contract finds its term in an output as it is, or there is none to be found in it."""
    found = [one for one in read(output, terms)[1].values() if isinstance(one, torch.Tensor)]
    return bool(found) or not readings(output, terms)


def _compared(
    form: Form,
    features: Features,
    contract: Contract,
    cases: list[Case],
    outputs: list[Any],
    asked: Subject,
    target: Any,
) -> Tried:
    matches = all(_equals(contract, case, output) for case, output in zip(cases, outputs, strict=True))
    invariant = False
    if not matches:
        try:
            again = _value(cases[0], asked, contract, target, times=2.0)
            invariant = _agree(contract, cases[0], again, outputs[0])
        except Exception:
            invariant = False
    above = () if matches else map(functools.partial(_above, contract), cases, outputs)
    distance = max(map(abs, above), default=0.0)
    return Tried(form, features, matches, invariant=invariant, distance=distance)


def _above(contract: Contract, case: Case, output: Any) -> float:
    """Return by how much the first term is above the oracle's, in proportion: the largest, either way."""
    right = np.asarray(reference(contract, Example(case)).terms[0][contract.terms[0]])
    found = read(output, contract.terms)[1].get(contract.terms[0])
    seen = to_array(found) if isinstance(found, torch.Tensor) else np.array(math.nan)
    if seen.size != right.size or not np.all(np.isfinite(seen)):
        return math.inf
    above = ((seen.reshape(right.shape) - right) / (1 + abs(right))).ravel()
    return float(max(above, key=abs, default=0.0))


def fitting(case: Case, form: Form, features: Features, contract: Contract, options: tuple[str, ...]) -> Case:
    """Return a case as a form takes it; `options` are those that the constructor takes."""
    held, constants = form.held(contract.name), constants_of(form, contract, options)
    if not form.is_plain:
        has_bias = {"logit_bias", "bias"} & set(form.inputs(contract.name))
        case = replace(case, bias=case.bias if has_bias else None)
    if not takes_scale(form, contract, options):
        case = replace(case, scale=1.0)
    return replace(case, features=features, held=held, frozen=tuple(sorted({*case.frozen, *constants})))


def takes_scale(form: Form, contract: Contract, options: tuple[str, ...]) -> bool:
    """Whether a target takes a scale or a temperature, in its constructor or its call."""
    known = NAMES[contract.name]
    if "scale" not in known or contract.whole:
        return True
    if form.is_plain:
        return "logit_scale" in contract.differentiable or "temperature" in options
    names = [name for name in form.names() if name in SOFT or (name in HELD and name in known)]
    # a constructor takes the temperature by the contract's own name
    return bool(names) or (
        form.constructed and "logit_scale" not in contract.differentiable and "temperature" in options
    )


def constants_of(form: Form, contract: Contract, options: tuple[str, ...]) -> tuple[str, ...]:
    """Return which inputs of a contract a target does not get as tensors."""
    constants = form.constants(contract.name)
    if "logit_scale" in contract.differentiable and not takes_scale(form, contract, options):
        return (*constants, "logit_scale")
    return constants


def _value(case: Case, subject: Subject, contract: Contract, target: Any, times: float = 1.0) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _called(case, subject, contract, target, times)


def _value_in_form(
    tried: Tried, target: Any, contract: Contract, subject: Subject, probe: Case, options: tuple[str, ...]
) -> Any:
    """Return what a target computes of a case, called in the form that was found."""
    case = fitting(probe, tried.form, tried.features, contract, options)
    return _value(case, replace(subject, form=tried.form, features=tried.features), contract, target)


def _called(case: Case, subject: Subject, contract: Contract, target: Any, times: float) -> Any:
    loss = build(contract, subject.form, target, case, 0, 1)
    given = inputs(0, reference(contract, Example(case)))
    if times != 1:
        rows = [name for name, value in given.items() if value.is_floating_point() and value.ndim == 2]
        given |= {name: given[name].detach() * times for name in rows}
    return call_of(contract, subject, case)(loss, given, 0)


def _agree(contract: Contract, case: Case, one: Any, other: Any) -> bool:
    """Whether two outputs differ by no more than two right losses that normalise rows may."""
    bounds = reference(contract, Example(replace(case, features="normalized"))).bounds.terms[0]
    allowed = 2 * bounds[contract.terms[0]]
    return bool(np.all(abs(_first(one, contract) - _first(other, contract)) <= allowed))


def _first(output: Any, contract: Contract) -> Any:
    (value, *_) = read(output, contract.terms)[1].values()
    return to_array(value)


def _equals(contract: Contract, case: Case, output: Any) -> bool:
    expected = reference(contract, Example(case))
    found = read(output, contract.terms)[1]
    for name, right in expected.terms[0].items():
        value = found.get(name)
        if not isinstance(value, torch.Tensor) or value.numel() != np.size(right):
            return False
        error = abs(to_array(value).reshape(np.shape(right)) - right)
        if not np.all(error <= expected.bounds.terms[0][name] * expected.slack):
            return False
    return True


TOTALS = ("loss", "total_loss", "loss_total", "total")
"""The names by which losses return what is to be derived, beside its parts."""


def readings(output: Any, terms: tuple[str, ...] = ()) -> list[str]:
    """Return the ways to read a loss out of what was returned, as the end of an expression.

    The first is the likeliest, and the only one where it has the name of a total, or of a contract's term.
    """
    if isinstance(output, torch.Tensor):
        return [""] if output.numel() == 1 else [".mean()"] * (output.ndim == 1)
    scalars = [(how, one) for how, one in entries_of(output, terms) if _is_scalar(one)]
    # an accuracy beside the loss has no gradient, and what was given was computed of nothing
    found = [how for how, one in scalars if one.grad_fn] or [how for how, _ in scalars]
    named = {f".{name}" for name in (*terms, *TOTALS)} | {_subscript(name) for name in (*terms, *TOTALS)}
    return found[:1] if named & set(found[:1]) else found


def entries_of(output: Any, terms: tuple[str, ...] = ()) -> list[tuple[str, Any]]:
    """Return the parts of what was returned, each with the end of an expression that reads it."""
    if isinstance(output, torch.Tensor):
        return []
    by_name = functools.partial(_by_name, terms)
    if isinstance(output, Mapping):
        keys = [(_subscript(key), key) for key in sorted(output, key=by_name)]
        return [(how, _read_by(operator.itemgetter(key), output)) for how, key in keys if how]
    names = getattr(output, "_fields", None)  # of a named tuple
    if isinstance(output, tuple | list) and not names:
        return [(f"[{place}]", one) for place, one in enumerate(output)]
    named = names or [name for name in dir(output) if not name.startswith("_")]
    return [(f".{one}", _read_by(operator.attrgetter(one), output)) for one in sorted(named, key=by_name)]


def _read_by(reader: Callable[[Any], Any], output: Any) -> Any:
    """Return a part of what was returned; nothing where it raises, as what was not computed may."""
    try:
        return reader(output)
    except Exception:
        return None


def _subscript(key: Any) -> str:
    """Return what reads a key, as Python; nothing where no literal is that key."""
    if isinstance(key, str):
        return f"[{json.dumps(key, ensure_ascii=False)}]"
    with contextlib.suppress(ValueError, SyntaxError):
        if ast.literal_eval(repr(key)) == key:
            return f"[{key!r}]"
    return ""


CONTRASTIVE = ("contrastive_loss", "contrastive", "clip_loss", "itc", "clip", "nce", "contrast")
SECOND = {
    "caption_loss": ("caption_loss", "caption", "captioning", "lm", "generative", "gen", "ce"),
    "distill_loss": ("distill_loss", "distill", "distillation", "kd", "soft", "teacher"),
}
"""By term: words in the names by which a loss returns it, the most telling first."""
MOST_PAIRS = 12


def read_forms(form: Form, output: Any, contract: Contract) -> list[Form]:
    """Return a form with each way to read the contract's terms out of what was returned, or their sum."""
    if len(contract.terms) == 1:
        found = readings(output, contract.terms)[:MOST_PAIRS]
        return [replace(form, call=f"{form.call}{reading}") for reading in found]
    if type(output) is tuple and has_all(output, contract.terms):
        return [form]
    scalars = [how for how, one in entries_of(output) if _is_scalar(one)]
    first = _named(scalars, CONTRASTIVE)
    second = _named(scalars, SECOND[contract.terms[1]])
    pairs = [(first[0], second[0])] if first and second else []
    if isinstance(output, tuple | list):
        pairs += list(itertools.permutations(scalars, 2))[:MOST_PAIRS]
    both = [
        replace(form, call=f"(lambda out: (out{one}, out{other}))({form.call})")
        for one, other in dict.fromkeys(pairs)
        if one != other
    ]
    sums = [replace(form, call=f"{form.call}{how}", total=True) for how in readings(output)[:1]]
    # of several numbers one may be the sum; where the first is not, it is none
    return [*both, *sums] if pairs else [*sums, *both]


def _named(ends: list[str], words: tuple[str, ...]) -> list[str]:
    """Return those of some ends of expressions that hold one of the words, by the first that they hold."""
    found = [(place, end) for end in ends for place, word in enumerate(words) if word in end.lower()]
    return list(dict.fromkeys(end for _, end in sorted(found)))


def has_all(output: Any, terms: tuple[str, ...]) -> bool:
    """Whether an output is as its contract says: a dict or a tuple of all terms."""
    found = read(output, terms)[1]
    extra = isinstance(output, tuple | list) and len(output) != len(terms)
    return not extra and set(found) == set(terms) and all(map(_is_scalar, found.values()))


def passed_by(call: str, function: Callable[..., Any]) -> set[str]:
    """Return which parameters of a function an expression gives to `target`."""
    names = [one.name for one in parameters_of(function)]
    found: set[str] = set()
    for node in ast.walk(ast.parse(call, mode="eval")):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "target":
            found |= {*names[: len(node.args)], *(one.arg for one in node.keywords if one.arg)}
    return found


def _shown(output: Any) -> str:
    shape = f" of shape {list(output.shape)}" if isinstance(output, torch.Tensor) else ""
    return f"{type(output).__name__}{shape}"


def _by_name(terms: tuple[str, ...], key: Any) -> tuple[int, str]:
    """Return where a part stands among others: what is called a loss first, what is called an input last."""
    name, totals = str(key).lower(), (*terms, *TOTALS)
    if name in totals:
        return totals.index(name) - len(totals), str(key)
    return 0 if "loss" in name else 2 if role_of(name, tuple(HOLDERS)) else 1, str(key)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() == 1 and value.is_floating_point()


def _defaults(
    target: Callable[..., Any], contract: Contract, subject: Subject, case: Case
) -> tuple[tuple[str, str], ...]:
    """Return the arguments of a constructor, or a function, that nobody passes, with their defaults."""
    if inspect.isclass(target) and target.__init__ is torch.nn.Module.__init__:
        return ()
    signed = inspect.signature(target).parameters.items()
    given = {name: one.default for name, one in signed if one.default is not one.empty}
    defaults = {name: " ".join(repr(one).split()) for name, one in given.items()}  # a tensor has lines
    defaults |= {name: one for name, one in (keywords_read(target) or {}).items() if one != NEEDED}
    if is_called_itself(target):
        return tuple(defaults.items())
    known = {**contract.constructor(case), **dict(subject.options), "rank": 0, "world_size": 1}
    passed = accepted(target, known)
    return tuple((name, default) for name, default in defaults.items() if name not in passed)


def _unknown(target: Any, contract: Contract, subject: Subject, signature: Signature) -> str:
    """Return why a target cannot be verified, and how to state its form."""
    place, name = Target.of(subject.target)
    left_out = contract.sizes_held if contract.whole else ("labels", *OPTIONS[contract.name])
    names = [one for one in NAMES[contract.name] if one not in left_out]
    call = f"target({', '.join(names if contract.whole else names[:3])})"
    if contract.holds:
        given = [one for one in names if NAMES[contract.name][one].input and one != contract.holds]
        call = f"in_turn(target, {', '.join([contract.holds, *given])})"
    said = (
        f"{signature.unusable}. No form that is known fits; state one with --call, as --call '{call}', where "
        f"target is {name}{' constructed' if inspect.isclass(target) else ''}, of the names "
        f"{', '.join(names)}"
    )
    if contract.whole:
        return said
    with contextlib.suppress(ValueError, TypeError):  # it has no signature
        called = entry_of(target)
        file, command = adapter.command(place, contract.name)
        written = adapter.adapter(target, called, place, name, contract.name)
        fill = f", fill in {adapter.BLANK}" if adapter.BLANK in written else ""
        said += f"; or write {file}{fill}, and run {command}:\n\n{written}"
    return said


def entry_of(target: Any) -> Any:
    """Return what is called with tensors: a function itself, or the method of what a class constructs."""
    if is_called_itself(target):
        return target
    methods = [name for name in ("forward", "__call__") if hasattr(target, name)]
    if not inspect.isclass(target) or not methods:
        raise TypeError(f"{target!r} constructs what it is called on")
    return functools.partial(getattr(target, methods[0]), None)  # without self
