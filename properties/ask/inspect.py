"""The command `verified-losses inspect`: how a target is called, and which contracts fit."""

import shlex
from collections.abc import Sequence

from rich.markup import escape

from ..names import CONTRACTS, FORMULAS
from ..show.console import Console
from ..show.forms import described
from ..show.text import plain
from ..subjects import Subject
from ..verify.arguments import Unusable
from ..verify.plan import inspection
from . import FALSIFIED, HOLDS

KINDS = {formula: name for name, formula in FORMULAS.items()}
"""By its formula the name of a kind."""


def inspected(asked: dict[str, Subject], options: Sequence[str] = ()) -> int:
    """Print what a target is as each of some contracts; return the exit status.

    Args:
        asked: the target, by contract.
        options: what was stated of it, which the command that certifies it repeats.

    Raises:
        Unusable: the target cannot be imported, or fits no contract for a reason that is the same for all.
    """
    console = Console(emoji=False)
    reasons: dict[str, Unusable] = {}
    fitting: list[tuple[str, Subject]] = []
    called: list[tuple[str, Subject]] = []
    for name, subject in asked.items():
        try:
            found, matches = inspection(subject, name)
        except Unusable as error:
            reasons[name] = error
            continue
        (fitting if matches else called).append((name, found))
    if not fitting and not called:
        raise next(iter(reasons.values()))
    # of pairs of rows most kinds can be called: where none fits, the contracts alone say how
    shown = fitting or [one for one in called if one[0] in CONTRACTS] or called
    for formula, found in shown:
        name = KINDS.get(formula, formula)
        said = (
            "its values are the oracle's"
            if fitting
            else "it can be called, but its values are not the oracle's"
        )
        console.print(f"[bold]{escape(name)}[/]: {said}", highlight=False)
        for line in described(formula, found):
            console.print(f"  {escape(plain(line))}", highlight=False, soft_wrap=True)
        command = shlex.join(["verified-losses", "certify", found.target, "--as", name, *options])
        console.print(f"  {escape(command)}", highlight=False, soft_wrap=True)
    if not fitting and shown != called:
        others = ", ".join(KINDS[formula] for formula, _ in called if formula in KINDS)
        console.print(f"it can be called as {others} too", highlight=False)
    return HOLDS if fitting else FALSIFIED
