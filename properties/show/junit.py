"""A record as JUnit XML, as continuous integration shows it: a suite a loss, a case a law and world."""

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from .certificate import Certificate, Certificates, Property
from .text import plain, shortened, write_whole

COMPLETE = "all that was asked for ran"
"""Name of the case that stands for what did not run."""
NOT_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What no XML file may hold."""


def render(record: Certificate | Certificates) -> bytes:
    """Return a record as JUnit XML.

    What is falsified fails, unless it is known: that is skipped, as limits and what was skipped are. Where a
    loss is not falsified and something that was asked for did not run, a case of its own is an error.
    """
    certificates = record.certificates if isinstance(record, Certificates) else [record]
    root = ElementTree.Element("testsuites", name="verified-losses")
    totals = [_add_suite(root, one, certificates) for one in certificates]
    _set_counts(root, [sum(column) for column in zip(*totals, strict=True)] if totals else [0] * 5)
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def write(record: Certificate | Certificates, path: Path) -> None:
    """Write a record as JUnit XML.

    Raises:
        OSError: it cannot be written there.
    """
    write_whole(path, render(record))


def _add_suite(
    root: ElementTree.Element, one: Certificate, certificates: Sequence[Certificate]
) -> list[float]:
    """Add the suite of a loss; return its numbers of tests, failures, errors and skipped, and its seconds."""
    several = sum(one.target == other.target for other in certificates) > 1
    name = f"{one.target} as {one.contract}" if several else one.target
    suite = ElementTree.SubElement(root, "testsuite", name=_text(name))
    given = ElementTree.SubElement(suite, "properties")
    about = {"contract": one.contract, "verdict": one.verdict, "seed": one.seed, "source": one.source}
    for key, value in {**about, "command": one.command, **one.versions}.items():
        ElementTree.SubElement(given, "property", name=key, value=_text(str(value)))
    outcomes = [_add_case(suite, name, found) for found in one.properties]
    if one.verdict == "incomplete":
        case = ElementTree.SubElement(suite, "testcase", classname=_text(name), name=COMPLETE, time="0")
        error = ElementTree.SubElement(case, "error", message="something did not run", type="incomplete")
        error.text = _text("\n".join(one.not_verified))
        outcomes.append("error")
    if one.not_verified:
        lines = "\n".join(f"not verified: {line}" for line in one.not_verified)
        ElementTree.SubElement(suite, "system-out").text = _text(lines)
    counts = [len(outcomes), *(outcomes.count(kind) for kind in ("failure", "error", "skipped"))]
    seconds = sum(found.seconds for found in one.properties)
    _set_counts(suite, [*counts, seconds])
    return [*counts, seconds]


def _add_case(suite: ElementTree.Element, name: str, found: Property) -> str:
    """Add the case of a law in a world; return its outcome, or nothing if it holds."""
    named, seconds = f"{found.property} [{found.world}]", f"{found.seconds:.3f}"
    case = ElementTree.SubElement(suite, "testcase", classname=_text(name), name=named, time=seconds)
    if found.verdict == "falsified" and not found.known:
        message, *_ = shortened(found.reason).splitlines() or [""]
        where = f" ({found.counterexample})" if found.counterexample else ""
        failure = ElementTree.SubElement(case, "failure", message=_text(message + where), type="falsified")
        lines = [found.reason, f"smallest case: {found.case}"]
        lines += [f"fingerprint: {found.fingerprint}"] * bool(found.fingerprint)
        lines += [f"run: python {found.counterexample}"] * bool(found.counterexample)
        failure.text = _text("\n".join(lines))
        return "failure"
    if found.verdict == "holds":
        return ""
    message = f"known: {found.known}" if found.known else found.reason
    if found.verdict == "limit":
        message = f"limit, no defect unless --strict: {found.limit}"
    ElementTree.SubElement(case, "skipped", message=_text(message))
    return "skipped"


def _set_counts(element: ElementTree.Element, counts: Sequence[float]) -> None:
    *numbers, seconds = counts
    for key, number in zip(("tests", "failures", "errors", "skipped"), numbers, strict=True):
        element.set(key, str(int(number)))
    element.set("time", f"{seconds:.3f}")


def _text(text: str) -> str:
    return NOT_XML.sub("\ufffd", plain(text))
