"""The certificates of shards, made into one: as one run would have written it."""

import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from ..verify.shards import Unreadable
from .certificate import Certificate, Certificates, Device, Part, Property, decode, together
from .drawn import added
from .text import write_whole

SAME = ("version", "convention", "seed", "max_examples", "worlds", "source", "issuer", "versions")
"""Fields of a certificate that all shards of a run have in common."""
SAME_PART = ("count", "label", "subject", "checks")
"""The same of what a certificate says of its shard."""
HOME = re.compile(r'^HOME = "[^"\n]*"', re.MULTILINE)
"""The line of a counterexample that says from which folder it was written."""


class NotOneRun(ValueError):
    """Certificates are not of different shards of one run; the message says what differs."""


@dataclass(frozen=True)
class Left:
    """What a shard left."""

    file: Path
    record: Certificate | Certificates

    @property
    def certificates(self) -> list[Certificate]:
        """Those of its targets."""
        return self.record.certificates if isinstance(self.record, Certificates) else [self.record]

    @property
    def is_shard(self) -> bool:
        """Whether it is of a shard, and not of a whole run."""
        return self.certificates[0].shard is not None

    @property
    def index(self) -> int:
        """Which shard it is, from 1."""
        part = self.certificates[0].shard
        return part.index if part else 1


def read(file: Path) -> Left:
    """Read what a shard left.

    Raises:
        Unreadable: the file cannot be read, or holds no certificate.
    """
    try:
        record = decode(file.read_bytes())
    except OSError as error:
        raise Unreadable(f"{file}: {error.strerror or error}") from error
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Unreadable(f"{file}: no whole certificate: {error}") from error
    left = Left(file, record)
    if not left.certificates:
        raise Unreadable(f"{file}: no whole certificate: it has no target")
    return left


def merge(lefts: Sequence[Left]) -> Certificate | Certificates:
    """Return one certificate of the shards of one run. Counterexamples keep the names that shards gave them.

    What is missing or was cut short is listed as not verified, and the verdict is then "incomplete", unless
    something is falsified.

    Raises:
        NotOneRun: they are not of one run, or one was given twice.
    """
    ordered = sorted(lefts, key=lambda left: left.index)
    first, *others = ordered
    for other in others:
        _compare(first, other)
    for before, after in zip(ordered, others, strict=False):
        if before.index == after.index:
            raise NotOneRun(f"{_named(after)} was given twice: {before.file} and {after.file}")
    if first.certificates[0].shard is None:
        return first.record
    targets = list(zip(*(left.certificates for left in ordered), strict=True))
    lines = _lines(targets)
    return together([_merged(shards, lines) for shards in targets])


def _named(left: Left) -> str:
    part = left.certificates[0].shard
    return f"shard {part.index}/{part.count}" if part else "a whole run"


def _compare(one: Left, other: Left) -> None:
    """Raise NotOneRun if two certificates are of different runs."""

    def differ(what: str, first: Any, second: Any) -> None:
        if first != second:
            both = f"{_short(first)} in {one.file}, {_short(second)} in {other.file}"
            raise NotOneRun(f"not shards of one run: {what}: {both}")

    differ("targets", *([f"{c.target} as {c.contract}" for c in left.certificates] for left in (one, other)))
    for ours, theirs in zip(one.certificates, other.certificates, strict=True):
        for name in SAME:
            mine, others = getattr(ours, name), getattr(theirs, name)
            if isinstance(mine, dict | msgspec.Struct):  # the error names the part that differs
                mine, others = msgspec.to_builtins(mine), msgspec.to_builtins(others)
                for key in dict.fromkeys([*mine, *others]):
                    differ(f"{name}: {key}", mine.get(key, "none"), others.get(key, "none"))
            differ(name, mine, others)
        if ours.shard is None or theirs.shard is None:
            differ("shard", *(str(c.shard and f"{c.shard.index}/{c.shard.count}") for c in (ours, theirs)))
            return
        for name in SAME_PART:
            differ(name, getattr(ours.shard, name), getattr(theirs.shard, name))


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _merged(shards: Sequence[Certificate], lines: list[str]) -> Certificate:
    """Return the certificate of one target, of those of its shards in their order."""
    first = shards[0]
    properties = _with_one_file_each(_rows(shards))
    if any(one.verdict == "falsified" and not one.known for one in properties):
        verdict = "falsified"
    elif _lacking(shards) or any(one.verdict == "incomplete" for one in shards):
        verdict = "incomplete"
    else:
        verdict = "holds"
    return msgspec.structs.replace(
        first,
        verdict=verdict,
        properties=properties,
        devices=_devices(shards),
        not_verified=lines,
        drawn=added(one.drawn for one in shards),
        command=_without_shard(first.command),
        shard=None,
        limits=list(dict.fromkeys(limit for one in shards for limit in one.limits)),
    )


def _rows(shards: Sequence[Certificate]) -> list[Property]:
    """Return the outcomes of all checks of a target, in the order of the run."""
    by_check: dict[tuple[str, str], list[Property]] = {
        (one.property, one.world): [] for one in _part(shards[0]).checks
    }
    for shard in shards:
        for one in shard.properties:
            by_check.setdefault((one.property, one.world), []).append(one)
    return [row for rows in by_check.values() for row in combine(rows)]


def _devices(shards: Sequence[Certificate]) -> list[Device]:
    """Return the devices of all shards: one of the same name, driver and builds once."""
    order = list(dict.fromkeys(one.world for one in _part(shards[0]).checks))
    same: dict[tuple[str, ...], list[Device]] = {}
    for one in (device for shard in shards for device in shard.devices):
        what = one.device, one.name, one.driver, one.torch, one.cuda, one.nccl
        same.setdefault(what, []).append(one)
    verdicts = ["falsified", "incomplete", "holds", "not verified"]
    is_short = bool(_lacking(shards))
    merged = []
    for parts in same.values():
        worlds = dict.fromkeys(world for one in parts for world in one.worlds)
        verdict = min((one.verdict for one in parts), key=verdicts.index)
        merged.append(
            msgspec.structs.replace(
                parts[0],
                worlds=sorted(worlds, key=lambda world: order.index(world) if world in order else -1),
                verdict="incomplete" if verdict == "holds" and is_short else verdict,
                notes=list(dict.fromkeys(note for one in parts for note in one.notes)),
            )
        )
    return merged


def _part(certificate: Certificate) -> Part:
    assert certificate.shard is not None
    return certificate.shard


def combine(found: Sequence[Property]) -> list[Property]:
    """Return the outcome of one check, of those that shards had with cases of their own: a row a defect.

    Each defect has the smallest case that a shard found, which is the shortest as text; the first has the
    cases that hold too.
    """
    by_defect: dict[str, list[Property]] = {}
    others = [one for one in found if one.verdict != "falsified"]
    for one in found:
        if one.verdict == "falsified":
            by_defect.setdefault(one.fingerprint, []).append(one)
    groups = list(by_defect.values())
    if not groups:
        told = ("skipped", "holds", "limit")
        return [_summed(max(others, key=lambda one: told.index(one.verdict)), others)] if others else []
    groups[0] = groups[0] + others
    return [_summed(min(rows, key=_size), rows) for rows in groups]


def _summed(shown: Property, rows: Sequence[Property]) -> Property:
    """Return a row as shown, with the cases and seconds of all rows."""
    if len(rows) == 1:
        return shown
    known = shown.known if all(one.known for one in rows if one.verdict == "falsified") else ""
    return msgspec.structs.replace(
        shown,
        known=known,
        examples=sum(one.examples for one in rows),
        worst_error_over_bound=max(one.worst_error_over_bound for one in rows),
        seconds=round(sum(one.seconds for one in rows), 3),
        errors_over_bound=[ratio for one in rows for ratio in one.errors_over_bound],
    )


def _size(one: Property) -> tuple[bool, int, str]:
    return one.verdict != "falsified", len(one.case), one.case


def _with_one_file_each(properties: list[Property]) -> list[Property]:
    """Give all findings of one defect the counterexample of the smallest."""
    files: dict[str, str | None] = {}
    for one in sorted(properties, key=_size):
        if one.fingerprint and files.get(one.fingerprint) is None:
            files[one.fingerprint] = one.counterexample
    return [
        msgspec.structs.replace(one, counterexample=files.get(one.fingerprint, one.counterexample))
        for one in properties
    ]


def _lacking(shards: Sequence[Certificate]) -> dict[int, int]:
    """Return, of each shard that is missing or was cut short, how many checks of a target did not run.

    Where shards share all checks, a shard that is missing lacks an unknown number, 0.
    """
    part = _part(shards[0])
    there = {_part(one).index: one for one in shards}
    lacking = {}
    for index in range(1, part.count + 1):
        ran = {(one.property, one.world) for one in there[index].properties} if index in there else set()
        own = [one for one in part.checks if one.shard == index]
        absent = [one for one in own if (one.property, one.world) not in ran]
        if absent or (index not in there and not part.checks):
            lacking[index] = len(absent)
    return lacking


def _lines(targets: Sequence[Sequence[Certificate]]) -> list[str]:
    """Return what is not verified in a run: what all shards say, and then what some say or leave out."""
    shards = targets[0]  # a run says of all its targets the same
    common = [line for one in shards for line in one.not_verified if line not in _part(one).not_verified]
    skipped = [
        f"{_part(target[0]).label}: {row.property} in world {row.world}: {row.reason}"
        for target in targets
        for row in _rows(target)
        if row.verdict == "skipped"
    ]
    said = {f"{_part(one).index}/{_part(one).count}": _part(one).not_verified for one in shards}
    known = list(dict.fromkeys(line for lines in said.values() for line in lines))
    of_all = [line for line in known if len(said) > 1 and all(line in lines for lines in said.values())]
    own = [
        f"{'every shard' if line in of_all else f'shard {name}'}: {line}"
        for name, lines in said.items()
        for line in lines
        if line not in skipped
    ]
    return list(
        dict.fromkeys([*common, *(line for line in skipped if line in known), *own, *_absent(targets)])
    )


def _absent(targets: Sequence[Sequence[Certificate]]) -> list[str]:
    """Return which shards of a run are missing, and which were cut short."""
    count, there = _part(targets[0][0]).count, {_part(one).index for one in targets[0]}
    lacking: Counter[int] = Counter()
    for shards in targets:
        lacking.update(_lacking(shards))
    lines = []
    for index in range(1, count + 1):
        many = f"{lacking[index]} check{'s' * (lacking[index] != 1)}"
        if index not in there:
            lines.append(f"shard {index}/{count}: missing" + f", with {many}" * bool(lacking[index]))
        elif index in lacking:
            lines.append(f"shard {index}/{count}: cut short: {many} did not run")
    return lines


def _without_shard(command: str) -> str:
    """Return a command line without its option --shard."""
    words, kept, skip = shlex.split(command), [], False
    for word in words:
        if not skip and word != "--shard" and not word.startswith("--shard="):
            kept.append(word)
        skip = word == "--shard"
    return shlex.join(kept)


def located(left: Left) -> Left:
    """Return what a shard left, with its counterexamples named by where they are.

    A file is sought by its name in the folder of the certificate and in those in it; one that is not there
    keeps the name that the shard gave it.
    """
    folder = left.file.parent
    below = {file.name: file for file in sorted([*folder.glob("*.py"), *folder.glob("*/*.py")])}

    def there(name: str) -> str:
        return str(below.get(Path(name).name, name))

    return replace(left, record=_renamed(left.record, there))


def copied(record: Certificate | Certificates, folder: Path) -> Certificate | Certificates:
    """Copy the counterexamples that a record names into a folder; return it with the names of the copies.

    Raises:
        OSError: one cannot be read or written.
    """

    def copy(name: str) -> str:
        file, target = Path(name), folder / Path(name).name
        if not file.is_file():
            return name
        _copy(file, target)
        return str(target)

    return _renamed(record, copy)


def copy_finds(files: Sequence[Path], folder: Path) -> None:
    """Copy all counterexamples of some folders into one; of those with one name, the smallest.

    Raises:
        OSError: one cannot be read or written.
    """
    smallest: dict[str, Path] = {}
    for file in sorted(files, key=lambda file: (file.stat().st_size, file)):
        smallest.setdefault(file.name, file)
    for name, file in smallest.items():
        _copy(file, folder / name)


def _copy(file: Path, target: Path) -> None:
    """Copy a counterexample, and let it name the current folder from its new place."""
    text = file.read_bytes().decode(errors="surrogateescape")
    home = f'HOME = "{os.path.relpath(Path.cwd(), target.parent)}"'
    write_whole(target, HOME.sub(lambda line: home, text, count=1).encode(errors="surrogateescape"))


def _renamed(record: Certificate | Certificates, rename: Callable[[str], str]) -> Certificate | Certificates:
    """Return a record with other names of counterexamples."""
    if isinstance(record, Certificates):
        certificates = [_renamed_one(one, rename) for one in record.certificates]
        return msgspec.structs.replace(record, certificates=certificates)
    return _renamed_one(record, rename)


def _renamed_one(certificate: Certificate, rename: Callable[[str], str]) -> Certificate:
    rows = [
        msgspec.structs.replace(one, counterexample=one.counterexample and rename(one.counterexample))
        for one in certificate.properties
    ]
    return msgspec.structs.replace(certificate, properties=rows)
