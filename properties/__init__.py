"""The suite, for any implementation: cases, contracts, worlds, laws and the certifier."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ask.api import NotCertified, certification, certify

__all__ = ["NotCertified", "certification", "certify"]


def __getattr__(name: str) -> Any:
    # not before it is asked for: ranks, and every run of pytest, import this package
    if name in __all__:
        from .ask import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
