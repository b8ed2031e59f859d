"""`verified-losses merge`: the certificates of shards made into one."""

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.markup import escape

from ..fuzz import corpus
from ..show.certificate import Certificate, Certificates, Property, together
from ..show.console import Console
from ..show.merge import Left, NotOneRun, copied, copy_finds, located, merge, read
from ..show.regroup import regrouped
from ..show.text import plain, shortened
from ..verify.arguments import Unusable
from ..verify.concerns import place
from ..verify.shards import Unreadable
from . import FALSIFIED, HOLDS, NOT_RUN, run

STATUS = {"holds": HOLDS, "falsified": FALSIFIED, "incomplete": NOT_RUN}
FILES = "certificate.json", "report.html", "junit.xml"


def merge_shards(files: Sequence[Path], troubles: list[str], output: Path) -> int:
    """Make one certificate of what shards left, write it with its page and JUnit XML; return the exit status.

    Args:
        files: their certificates.
        troubles: why what else was given names none.
        output: where to write.

    Raises:
        Unusable: there is no certificate, they are not of one run, or the output cannot be written.
    """
    console = run.printer()
    lefts, unread = _read(files)
    if len(lefts) > 1:  # what a merge before has written into a folder beside them is none of them
        lefts = [left for left in lefts if left.is_shard or left.file.resolve().parent != output.resolve()]
    for trouble in [*troubles, *unread]:
        console.print(
            f"[yellow]nothing to merge[/] {escape(plain(trouble))}", highlight=False, soft_wrap=True
        )
    if not lefts:
        raise Unusable(
            "PATHS", "expected at least one certificate of a shard; there is none that can be read"
        )
    if output.resolve() in [left.file.resolve().parent for left in lefts]:
        raise Unusable("output", f"expected a folder of its own, got that of a shard, {output}")
    try:
        record = merge([located(left) for left in lefts])
    except NotOneRun as error:
        raise Unusable("", plain(str(error))) from error
    folder = output / "counterexamples"
    json, html, junit = (output / name for name in FILES)
    try:
        record = copied(_compared(record, lefts, folder, console), folder)
        finds = [find for left in lefts for find in corpus.files(left.file.parent / corpus.FOLDER)]
        copy_finds(finds, output / corpus.FOLDER)
    except OSError as error:
        raise Unusable("output", f"cannot write {output}: {error.strerror or error}") from error
    run.save(record, json, html, junit)
    _show(console, record, len(lefts))
    run.show_files(console, json, html, junit)
    return STATUS[record.verdict]


def _read(files: Sequence[Path]) -> tuple[list[Left], list[str]]:
    """Return what shards left, and why some files hold nothing."""
    lefts, troubles = [], []
    for file in files:
        try:
            lefts.append(read(file))
        except Unreadable as error:
            troubles.append(str(error))
    return lefts, troubles


def _compared(
    record: Certificate | Certificates, lefts: Sequence[Left], folder: Path, console: Console
) -> Certificate | Certificates:
    """Tell which findings of different shards are one defect."""
    sys.path.append("")  # as `certify` does: a target beside the caller is found
    merged = record.certificates if isinstance(record, Certificates) else [record]
    shards = zip(*(left.certificates for left in lefts), strict=True)
    certificates = []
    for one, parts in zip(merged, shards, strict=True):
        certificate, trouble = regrouped(one, parts, folder)
        certificates.append(certificate)
        if trouble:
            console.print(f"[yellow]note[/] {escape(plain(trouble))}", highlight=False, soft_wrap=True)
    if isinstance(record, Certificates):
        return msgspec.structs.replace(record, certificates=certificates)
    return together(certificates)


def _show(console: Console, record: Certificate | Certificates, shards: int) -> None:
    """Print each defect once, what is not verified, and a line a target."""
    certificates = record.certificates if isinstance(record, Certificates) else [record]
    for one in certificates:
        for rows in sorted(_defects(one.properties), key=lambda rows: min(place(r.concern) for r in rows)):
            _show_defect(console, one.target, rows)
    console.print()
    for line in dict.fromkeys(line for one in certificates for line in one.not_verified):
        console.print(f"not verified: {escape(line)}", highlight=False, soft_wrap=True)
    colours = {"holds": "green", "falsified": "bold red", "incomplete": "yellow"}
    for one in certificates:
        cases, checks = sum(row.examples for row in one.properties), len(one.properties)
        counted = f"{checks} check{'s' * (checks != 1)} over {cases} case{'s' * (cases != 1)}"
        but = f", but for: {', '.join(one.limits)}" if one.limits else ""
        what = f"{one.target} as {one.contract}: {counted}{but}"
        console.print(
            f"[{colours[one.verdict]}]{one.verdict}[/] {escape(what)}", highlight=False, soft_wrap=True
        )
    merged = f"{shards} shard{'s' * (shards != 1)} merged, seed {certificates[0].seed}"
    console.print(f"\n[bold {colours[record.verdict]}]{record.verdict}[/]: {merged}", highlight=False)


def _defects(properties: Sequence[Property]) -> list[list[Property]]:
    """Return the findings that are not accepted, those of one defect together."""
    groups: dict[str, list[Property]] = {}
    for number, row in enumerate(properties):
        if row.verdict == "falsified" and not row.known:
            groups.setdefault(row.fingerprint or str(number), []).append(row)
    return list(groups.values())


def _show_defect(console: Console, target: str, rows: Sequence[Property]) -> None:
    first, *others = rows
    what = f"{target}: {first.property} does not hold in world {first.world}"
    console.print(f"\n[bold red]{escape(what)}[/]", soft_wrap=True)
    lines = [shortened(first.reason)] + [f"smallest case: {first.case}"] * bool(first.case)
    if others:
        lines.append("the same defect: " + ", ".join(f"{one.property} ({one.world})" for one in others))
    lines += [f"run: python {first.counterexample}"] * bool(first.counterexample)
    console.print(escape(plain("\n".join(lines))), highlight=False, soft_wrap=True)
