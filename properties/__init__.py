"""The suite, for any implementation: cases, contracts, worlds, laws and the certifier."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verified_losses.oracles.tolerance import assert_within_rounding, rounding_bound

    from .ask.api import NotCertified, certification, certify
    from .own.formula import contract, detached
    from .own.kinds import choice, ids, mask, matrix, positive, rows, shared

KINDS = ("choice", "ids", "mask", "matrix", "positive", "rows", "shared")
FORMULAS = ("contract", "detached")
TOLERANCES = ("assert_within_rounding", "rounding_bound")
__all__ = [
    "NotCertified", "assert_within_rounding", "certification", "certify", "choice", "contract", "detached",
    "ids", "mask", "matrix", "positive", "rounding_bound", "rows", "shared",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # not before it is asked for: ranks, and every run of pytest, import this package
    if name in TOLERANCES:
        from verified_losses.oracles import tolerance

        return getattr(tolerance, name)
    if name in FORMULAS:
        from .own import formula

        return getattr(formula, name)
    if name in KINDS:
        from .own import kinds

        return getattr(kinds, name)
    if name in __all__:
        from .ask import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
