"""Findings that are accepted, each with a reason, in a file that people keep beside their loss.

Imports no torch: the file is read before torch is imported.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec

from ..names import meant

if TYPE_CHECKING:
    from .certifier import Finding


class Told(Protocol):
    """What reports read of a finding, whatever is verified."""

    @property
    def loss(self) -> str: ...
    @property
    def law(self) -> str: ...
    @property
    def world(self) -> str: ...
    @property
    def check(self) -> Any: ...
    @property
    def verdict(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def examples(self) -> int: ...
    @property
    def worst_error_over_bound(self) -> float: ...
    @property
    def not_run(self) -> bool: ...
    @property
    def fingerprint(self) -> str: ...


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One accepted finding: `[[known]]` in the file."""

    property: str
    """Name of the law."""
    reason: str
    world: str = ""
    """Empty for every world."""
    target: str = ""
    """Empty for every target."""
    fingerprint: str = ""
    """Empty for every finding of the property."""


class _File(msgspec.Struct, forbid_unknown_fields=True):
    known: list[Entry] = []


@dataclass
class Known:
    """The findings that a file accepts."""

    entries: list[Entry] = field(default_factory=list)
    file: Path | None = None

    @classmethod
    def read(cls, path: Path) -> "Known":
        """Read a TOML file.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not TOML, or an entry is not one; the message names what is wrong.
        """
        try:
            entries = msgspec.convert(tomllib.loads(path.read_text()), _File).known
        except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            raise ValueError(f"{path}: {error}") from error
        return cls(entries, path)

    def check(self, names: Sequence[str]) -> None:
        """Check that the properties of all entries are among these.

        Raises:
            ValueError: one is not.
        """
        for entry in self.entries:
            if entry.property not in names:
                got = f"{entry.property!r}{meant(entry.property, names)}"
                expected = f"expected one of {', '.join(names)}, got {got}"
                raise ValueError(f"{self.file}: property: {expected}")

    def reason(self, finding: Told) -> str:
        """Return why a finding is accepted; nothing, if it is not."""
        if finding.verdict != "falsified":
            return ""
        return next((entry.reason for entry in self.entries if _matches(entry, finding)), "")

    def unmatched(self, findings: Sequence[Told]) -> list[Entry]:
        """Return the entries that match neither finding nor limit: what they accept is gone, or not asked."""
        return [entry for entry in self.entries if not any(_matches(entry, one) for one in findings)]


def _matches(entry: Entry, finding: Told) -> bool:
    from .fingerprints import fingerprint

    return (
        finding.verdict in ("falsified", "limit")
        and entry.property == finding.law
        and entry.world in ("", finding.world)
        and entry.fingerprint in ("", finding.fingerprint or fingerprint(cast("Finding", finding)))
        and entry.target in ("", finding.check.subject.target)
    )
