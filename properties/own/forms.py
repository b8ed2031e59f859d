"""The forms in which a target may be called with what a formula names."""

from collections.abc import Iterator, Sequence
from typing import Any

from ..cases import Case
from ..contracts import Contract, accepted, entry
from ..forms import Form, named_in_call
from ..forms_known import MEANT, is_called_itself, parameters_of
from ..running import arrays_of, build, scalars_of
from ..subjects import Subject

PLACE = ("rank", "world_size")
WIDTHS = (
    "dim", "feature_dim", "features_dim", "feat_dim", "embed_dim", "embedding_dim", "embedding_size",
    "emb_dim", "in_features", "out_dim", "proj_dim", "projection_dim", "d", "c",
)  # fmt: skip
"""The names that constructors have for the width of features."""
NUMBERS = (
    "k", "queue_len", "queue_length", "queue_size", "memory_size", "memory_bank_size", "bank_size",
    "num_negatives", "n_negatives", "buffer_size", "capacity", "size", "length",
)  # fmt: skip
"""Those for the number of rows in a queue, by whatever name the formula has it."""
COUNTS = ("num_{0}", "n_{0}", "nb_{0}", "{0}_num", "number_of_{0}")
"""Those for another size, by its own name; what they are of may have other names."""
COUNTED = {"classes": ("class_num", "out_features", "num_class", "num_labels", "num_identities")}


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
    told = _sizes(parameters, sizes, (*names, *PLACE, *dict(subject.options)))
    free = [one for one in parameters if one not in (*names, *PLACE, *dict(subject.options), *dict(told))]
    choices: list[tuple[tuple[str, str], ...]] = [tuple((one, one) for one in learned)]
    choices = [*(((one, number),) for number in left for one in free), *choices]  # under another name
    for arguments in choices:
        arguments = (*told, *arguments)
        try:
            loss = build(contract, Form("", arguments), target, case, 0, 1)
        except Exception:
            continue
        given = {*passed, *(name for _, name in arguments)}
        arguments = (*((one, one) for one in numbers if one in passed), *arguments)
        rest = [one for one in names if (one not in given or one in tensors) and one not in sizes]
        arrays = [one for one in contract.learned if one in rest]
        owned = [*zip(scalars_of(loss), contract.scalars, strict=False)]
        owned += zip(arrays_of(loss), arrays, strict=False)
        held = stated.parameters or tuple(owned)
        for parameters_held in [held, ()] if held and not stated.parameters else [held]:
            bound = [name for _, name in parameters_held]
            kept = [one for one in rest if one not in bound and not (one in learned and not parameters_held)]
            function = entry(loss)
            for call in [stated.call] if stated.call else own_calls(function, kept, tensors):
                constants = () if parameters_held else arguments
                # the oldest rows come first, or the newest
                filled = [f"in_turn(target, {held_so}, " for held_so in (holds, f"{holds}.flip(1)")]
                for begins in filled if holds and not stated.call else ["target("]:
                    begun = call.replace("target(", begins, 1)
                    yield Form(begun, constants or _numbers(arguments, numbers), parameters_held)


def own_calls(function: Any, names: Sequence[str], tensors: Sequence[str]) -> Iterator[str]:
    """Yield calls of a function with all these names, as expressions: by name, by meaning, then in order."""
    parameters = [one.name for one in parameters_of(function)]
    same = [one for one in names if one in parameters]
    others = [one for one in names if one not in parameters]
    if not others:
        yield f"target({', '.join(f'{one}={named_in_call(one)}' for one in same)})"
        return
    free = [one for one in parameters if one not in names]
    if len(free) < len(others):
        return
    meant: dict[str, str] = {}
    for name in others:
        alike = [one for one in free if one not in meant and _mean_the_same(one, name)]
        meant |= dict.fromkeys(alike[:1], name)
    left = [one for one in free if one not in meant], [one for one in others if one not in meant.values()]
    in_order, by_meaning = dict(zip(free, others, strict=False)), meant | dict(zip(*left, strict=False))
    for found in [by_meaning, in_order] if by_meaning != in_order else [in_order]:
        pairs = found | {one: one for one in same}
        given = [f"{one}={named_in_call(pairs[one])}" for one in parameters if one in pairs]
        yield f"target({', '.join(given)})"


def _mean_the_same(one: str, other: str) -> bool:
    """Whether two names are in use for the same: labels and targets, temperature and tau."""
    plain = [name.lower().strip("_") for name in (one, other)]
    return any(all(name in known for name in plain) for known in MEANT.values())


def _numbers(arguments: tuple[tuple[str, str], ...], numbers: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in arguments if pair[1] in numbers)


def _sizes(
    parameters: Sequence[str], sizes: Sequence[str], taken: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    """Return which parameters of a constructor are sizes of what a loss holds, by another name."""
    found: dict[str, str] = {}
    for size in sizes:
        counts = (*(one.format(size) for one in COUNTS), *COUNTED.get(size, ()))
        names = WIDTHS if size == "width" else NUMBERS if size.endswith("_size") else counts
        free = [one for one in parameters if one not in (*taken, *found) and one.lower() in names]
        if size not in parameters and free:
            found[free[0]] = size
    return tuple(found.items())
