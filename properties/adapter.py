"""The adapter to write where no form that is known fits: three lines, for one target. Imports no torch."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .forms_known import MEANINGS, parameters_of, role_of
from .standalone.loading import relative_levels

BLANK = "..."
"""What somebody has to fill in."""
FILE = "adapter.py"
TAKEN = {
    "clip": ("image", "text", "scale"),
    "siglip": ("image", "text", "scale", "bias"),
    "coca": ("image", "text", "logits", "labels", "scale"),
    "distill": ("image", "text", "scale", "dist_image", "dist_text", "dist_scale"),
    "infonce": ("first", "second", "temperature"),
    "ntxent": ("first", "second", "temperature"),
    "cross_entropy": ("logits", "labels"),
    "linear_cross_entropy": ("hidden", "weight", "labels"),
}
"""By contract: the parameters of an adapter, by which a certifier knows what to pass."""


def adapter(target: Any, called: Callable[..., Any], place: str, name: str, contract: str) -> str:
    """Return a file that calls a target, with a blank for each parameter of which nothing is known.

    Args:
        target: the class or function.
        called: what is called with tensors: the target, or what is constructed of it.
        place: the module or the file that the target is in.
        name: of the target.
        contract: whose names the adapter takes.
    """
    taken = TAKEN[contract]
    built = f"{name}({_given(target, contract, taken, only_required=True)})" if called is not target else name
    call = f"{built}({_given(called, contract, taken)})"
    torch = "import torch\n" if "torch." in call else ""
    return f"{torch}{_imported(place, name)}\ndef adapter({', '.join(taken)}):\n    return {call}\n"


def command(place: str, contract: str) -> tuple[str, str]:
    """Return where an adapter of a target is to be, and the command that certifies it."""
    file = str(Path(place).parent / FILE) if place.endswith(".py") else FILE
    return file, f"verified-losses certify {file}:adapter --as {contract}"


def _imported(place: str, name: str) -> str:
    """Return the import of a target, for a file beside it or in the working directory."""
    name = name.partition(".")[0]
    if not place.endswith(".py"):
        return f"from {place} import {name}"
    if Path(place).is_file() and relative_levels(Path(place)):
        load = "from verified_losses.properties.standalone.loading import load"
        return f"{load}; {name} = load({place!r}).{name}"
    return f"from {Path(place).stem} import {name}"


def _given(
    function: Callable[..., Any], contract: str, taken: Sequence[str], only_required: bool = False
) -> str:
    roles, parts = MEANINGS[contract], []
    found = {one.name: role_of(one.name, tuple(roles)) for one in parameters_of(function)}
    for one in parameters_of(function):
        role = found[one.name]
        if role == "per_text" and "per_image" not in found.values():
            role = "similarity"  # a matrix alone, whose rows are the first's
        value = roles[role][0] if role else BLANK
        if not one.required and (not role or only_required):
            continue
        value = _by_taken(value.format(scaled="scale * ", biased="", heated=" / temperature"), taken)
        parts.append(f"{one.name}={value}" if one.by_name else value)
    return ", ".join(parts)


MADE = {
    "scale": "1 / temperature",
    "temperature": "1 / scale",
    "log_scale": "scale.log()",
    "log_temperature": "-scale.log()",
}
"""By a name that an adapter does not take: what makes it of those that it does."""


def _by_taken(value: str, taken: Sequence[str]) -> str:
    """Return an expression over a contract's names as one over an adapter's parameters."""
    if value == "labels" and "labels" not in taken:
        return f"torch.arange(len({taken[0]}))"
    return re.sub(
        r"\b[a-z_]+\b",
        lambda word: f"({MADE[word[0]]})" if word[0] in MADE and word[0] not in taken else word[0],
        value,
    )
