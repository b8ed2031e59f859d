"""The forms in which a target may be called with what a formula names."""

from collections.abc import Iterator, Sequence
from typing import Any

from ..cases import Case
from ..contracts import Contract, accepted, entry
from ..forms import Form
from ..forms_known import is_called_itself, parameters_of
from ..running import build, scalars_of
from ..subjects import Subject

PLACE = ("rank", "world_size")


def own_forms(target: Any, contract: Contract, subject: Subject, case: Case) -> Iterator[Form]:
    """Yield the forms that a target may have: by the formula's names, else in its order."""
    stated, holds = subject.form, contract.holds
    numbers = contract.constructor(case)
    tensors = [one for one in contract.inputs(case)[0] if one != holds]
    names = [*tensors, *(one for one in numbers if one not in tensors)]
    if is_called_itself(target):
        if holds:
            return  # a function holds nothing
        for call in [stated.call] if stated.call else own_calls(target, names, tensors):
            yield Form(call, constructed=False)
        return
    parameters = [one.name for one in parameters_of(target)]
    passed = accepted(target, {**numbers, **dict(subject.options)})
    learned = [one for one in contract.scalars if one in parameters]
    sizes = contract.sizes_held
    left = [one for one in numbers if one not in (*passed, *sizes)]
    free = [one for one in parameters if one not in (*names, *PLACE, *dict(subject.options))]
    choices: list[tuple[tuple[str, str], ...]] = [tuple((one, one) for one in learned)]
    if len(left) == 1:  # under another name
        choices = [*(((one, left[0]),) for one in free), *choices]
    for arguments in choices:
        try:
            loss = build(contract, Form("", arguments), target, case, 0, 1)
        except Exception:
            continue
        given = {*passed, *(name for _, name in arguments)}
        arguments = (*((one, one) for one in numbers if one in passed), *arguments)
        rest = [one for one in names if (one not in given or one in tensors) and one not in sizes]
        scalars = scalars_of(loss)
        held = stated.parameters or tuple(zip(scalars, contract.scalars, strict=False))
        for parameters_held in [held, ()] if held and not stated.parameters else [held]:
            bound = [name for _, name in parameters_held]
            kept = [one for one in rest if one not in bound and not (one in learned and not parameters_held)]
            function = entry(loss)
            for call in [stated.call] if stated.call else own_calls(function, kept, tensors):
                constants = () if parameters_held else arguments
                if holds and not stated.call:
                    call = call.replace("target(", f"in_turn(target, {holds}, ", 1)
                yield Form(call, constants or _numbers(arguments, numbers), parameters_held)


def own_calls(function: Any, names: Sequence[str], tensors: Sequence[str]) -> Iterator[str]:
    """Yield calls of a function with all these names, as expressions: by name, then in order."""
    parameters = [one.name for one in parameters_of(function)]
    same = [one for one in names if one in parameters]
    others = [one for one in names if one not in parameters]
    if not others:
        yield f"target({', '.join(f'{one}={one}' for one in same)})"
        return
    free = [one for one in parameters if one not in names]
    if len(free) >= len(others):
        pairs = dict(zip(free, others, strict=False)) | {one: one for one in same}
        yield f"target({', '.join(f'{one}={pairs[one]}' for one in parameters if one in pairs)})"


def _numbers(arguments: tuple[tuple[str, str], ...], numbers: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in arguments if pair[1] in numbers)
