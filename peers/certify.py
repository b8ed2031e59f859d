"""Certify the peers and write FINDINGS.md.

Exit status: 0 every falsified property has its sentence, and every sentence is reproduced, by its
counterexample run alone too; 1 not so (the file is written all the same, and what is amiss is printed), 2 the
peers are not installed.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from pathlib import Path

from verified_losses.properties.names import FORMULAS
from verified_losses.properties.show.certificate import versions
from verified_losses.properties.show.counterexample import SECONDS, write
from verified_losses.properties.show.replay import replay
from verified_losses.properties.subjects import Subject
from verified_losses.properties.verify.certifier import Check, Finding, checks, verify
from verified_losses.properties.verify.plan import inspection
from verified_losses.properties.worlds.specs import parse

from .defects import DEFECTS
from .load import SITE
from .records import RECORDS, Record

HERE = Path(__file__).parent
COUNTEREXAMPLES = HERE / "counterexamples"
KEPT = SITE.parent / "peers-seen"
"""What was seen when each record was last run, so that some can be run at a time."""
COSTLY_IN_PROCESSES = ("used equals fresh",)
"""A call that raises there costs the pool; one process and simulated ranks ask the same."""


def pins() -> dict[str, str]:
    """Return the version of every requirement."""
    lines = (HERE / "requirements.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def planned(record: Record, subject: Subject | None = None) -> Iterator[Check]:
    """List what a record asks, of its subject as an inspection has found it."""
    subject = subject or record.bind()
    for check in checks({record.key: (record.held_to, subject)}, parse(record.worlds)):
        name = check.law.name
        if record.narrower is not None:
            check = dataclasses.replace(check, contract=record.narrower)
        if (record.only and name not in record.only) or name in record.skip:
            continue
        if not (check.world.kind == "processes" and name in COSTLY_IN_PROCESSES):
            yield check


@dataclasses.dataclass(frozen=True)
class Seen:
    """The result of a check, as it travels between processes."""

    property: str
    world: str
    examples: int
    verdict: str
    reason: str
    case: str
    file: str = ""
    """Name of the counterexample; of each defect of a record the first finding has one."""


def certify(record: Record, seed: int) -> list[Seen]:
    """Verify what a record asks, and write the counterexamples."""
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    subject = record.bind()
    if not record.adapted:
        sys.path.append(str(SITE))
    if not record.adapted or record.contract in FORMULAS:
        subject, _ = inspection(subject, record.held_to)
    findings = []
    for check in planned(record, subject):
        finding = verify(check, record.examples, seed)
        if finding.reason.startswith("not every time"):
            # it failed once and not again, as a call that met a time limit on a busy machine does
            finding = verify(check, record.examples, seed)
        # a law may not apply to the options that a record pins: no case satisfies its assumptions
        if finding.verdict != "skipped":
            findings.append(finding)
    files: dict[str, tuple[Finding, str]] = {}
    for name, key in record.wrong.items():
        same = [one for one in findings if one.verdict == "falsified" and one.law == name]
        if same and key not in files:
            files[key] = same[0], write(same[0], COUNTEREXAMPLES).name
    named = {id(finding): file for finding, file in files.values()}
    return [
        Seen(
            finding.law,
            finding.world,
            finding.examples,
            finding.verdict,
            finding.reason,
            finding.counterexample,
            named.get(id(finding), ""),
        )
        for finding in findings
    ]


def falsified(findings: Sequence[Seen]) -> list[Seen]:
    """Return those that do not hold."""
    return [finding for finding in findings if finding.verdict == "falsified"]


def amiss(results: Mapping[str, Sequence[Seen]], records: Sequence[Record] = RECORDS) -> list[str]:
    """Return the differences between the tables and the findings."""
    lines: list[str] = []
    for record in records:
        bad = falsified(results[record.key])
        lines += [
            f"{record.key}: no sentence says why '{finding.property}' is falsified in {finding.world}: "
            f"{observed(finding)} {finding.case}"
            for finding in bad
            if finding.property not in record.wrong
        ]
        lines += [
            f"{record.key}: '{name}' is no longer falsified: {DEFECTS[key]}"
            for name, key in record.wrong.items()
            if name not in {finding.property for finding in bad}
        ]
    return lines


def silent(files: Sequence[Path], jobs: int) -> list[str]:
    """Run counterexamples alone; return those that do not show their defect, and their output."""
    with ThreadPoolExecutor(jobs) as pool:
        replayed = [one for (one,) in pool.map(lambda file: replay([file], 2 * SECONDS), files)]
    return [f"{one.file.name}: {one.state}: {one.output}" for one in replayed if one.state != "still there"]


def observed(finding: Seen) -> str:
    """Return a finding's message in one line, without the parts that differ from run to run."""
    if finding.reason.startswith("Falsified: "):
        return finding.reason.removeprefix("Falsified: ").splitlines()[0]
    said = []
    for text in re.split(r"^(?=rank \d+ )", finding.reason, flags=re.MULTILINE)[1:]:
        state, *lines = text.strip().splitlines()
        # a traceback ends with the exception; for a rank that died the signal or status comes first
        told = [line for line in lines if not line.startswith("  ")]
        last = told[-1 if "raised" in state else 0] if told else ""
        said.append(f"{state} {last}".strip())
    line = "; ".join(dict.fromkeys(said)) or finding.reason.splitlines()[0]
    return re.sub(r"\[[^\]]*\]:?\d*|/\S+/", "", line)[:160]


def markdown(results: Mapping[str, Sequence[Seen]], seed: int, records: Sequence[Record] = RECORDS) -> str:
    """Lay out FINDINGS.md."""
    pinned = pins()
    by_defect: dict[str, list[tuple[Record, Seen]]] = {}
    for record in records:
        # the most telling first, as the record lists them
        for name, key in record.wrong.items():
            same = [finding for finding in falsified(results[record.key]) if finding.property == name]
            by_defect.setdefault(key, []).extend((record, finding) for finding in same)
    by_defect = {key: found for key, found in by_defect.items() if found}
    out = [
        "# Released losses, certified",
        "",
        "Written by `make peers`, which installs the releases that `requirements.txt` pins, certifies them",
        "as `records.py` asks, and fails where a sentence below is not reproduced or one is missing. Each",
        "defect was falsified by the suite: its smallest case found is shown, and what was seen in it. A",
        "release is held to the mean over ranks that DDP computes (convention exact) unless the convention",
        "is open_clip: gathered rows then carry gradient as upstream's do.",
        "",
        f"{len(by_defect)} defects in {len({found[0][0].package for found in by_defect.values()})} of "
        f"{len({record.package for record in records})} packages. "
        + ", ".join(f"{name} {version}" for name, version in versions().items())
        + f"; seed {seed}.",
        "",
    ]
    out += ["| | package | loss | property | what is wrong |", "|---|---|---|---|---|"]
    for number, (key, found) in enumerate(by_defect.items(), 1):
        record, finding = found[0]
        name = record.target.split(":")[1]
        out.append(
            f"| [{number}](#{number}) | {record.package} {pinned[record.package]} | `{name}` "
            f"| {finding.property} | {DEFECTS[key]} |"
        )
    out.append("")
    for number, (key, found) in enumerate(by_defect.items(), 1):
        record, finding = found[0]
        package = f"{record.package} {pinned[record.package]}"
        properties = dict.fromkeys(f.property for _, f in found)
        names = "; ".join(
            f"{name} ({', '.join(dict.fromkeys(f.world for _, f in found if f.property == name))})"
            for name in properties
        )
        out += [
            f'## <a id="{number}"></a>{number}. {package}: `{record.target.split(":")[1]}`',
            "",
            f"{DEFECTS[key]}",
            "",
            f"- falsified: {names}",
            f"- asked: {record.about}, as `{record.contract}`, convention "
            + " and ".join(record.bind().conventions),
            f"- seen: {observed(finding)}",
            f"- run: [{finding.file}](counterexamples/{finding.file})",
            "- smallest case:",
            "",
            *(f"      {line}" for line in finding.case.splitlines()),
            "",
        ]
    out += [
        "## Everything that was asked",
        "",
        "| package | loss | asked | as | convention | worlds | cases | falsified |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        findings = results[record.key]
        bad = falsified(findings)
        wrong = f"{len(bad)} of {len(findings)}" if bad else f"none of {len(findings)}"
        out.append(
            f"| {record.package} {pinned[record.package]} | `{record.target.split(':')[1]}` | {record.about} "
            f"| {record.contract} | {' '.join(record.bind().conventions)} | {record.worlds} "
            f"| {sum(finding.examples for finding in findings)} | {wrong} |"
        )
    return "\n".join(out) + "\n"


def kept(record: Record, seed: int) -> list[Seen] | None:
    """Return what was seen when a record was last run with this seed; None if it was not."""
    file = KEPT / f"{record.key}-{seed}.json"
    return [Seen(**one) for one in json.loads(file.read_text())] if file.is_file() else None


def keep(record: Record, seed: int, findings: Sequence[Seen]) -> None:
    """Keep what was seen."""
    KEPT.mkdir(parents=True, exist_ok=True)
    text = json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1)
    (KEPT / f"{record.key}-{seed}.json").write_text(text)


def main() -> int:
    """Run the records that the command line names, or all, and write FINDINGS.md for all."""
    parser = argparse.ArgumentParser(description="Certify released losses and write peers/FINDINGS.md.")
    parser.add_argument("keys", nargs="*", help="records; some alone are printed and nothing is written")
    parser.add_argument(
        "--kept", action="store_true", help="go on: take what was seen of the records that were run before"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes that certify side by side")
    given = parser.parse_args()
    if not SITE.is_dir():
        print("the peers are not installed: make peers installs them", file=sys.stderr)
        return 2
    records = [record for record in RECORDS if not given.keys or record.key in given.keys]
    # read as triton is imported, by whichever record comes first
    os.environ["TRITON_INTERPRET"] = "1"
    results: dict[str, list[Seen]] = {}
    if given.kept:
        seen = {record.key: kept(record, given.seed) for record in records}
        results = {key: findings for key, findings in seen.items() if findings is not None}
        records = [record for record in records if record.key not in results]
    elif not given.keys:
        shutil.rmtree(COUNTEREXAMPLES, ignore_errors=True)
    start = time.monotonic()
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(certify, record, given.seed): record for record in records}
        for future in as_completed(futures):
            record = futures[future]
            results[record.key] = future.result()
            keep(record, given.seed, results[record.key])
            bad = falsified(results[record.key])
            took = f"{time.monotonic() - start:6.0f} s"
            print(f"{took} {record.key}: {len(bad)} of {len(results[record.key])} falsified", flush=True)
    records = [record for record in RECORDS if record.key in results]
    text = markdown(results, given.seed, records)
    if given.keys:
        print(text)
    else:
        (HERE / "FINDINGS.md").write_text(text)
        for file in COUNTEREXAMPLES.glob("*.py"):
            if file.name not in text:  # the same defect, met by another record
                file.unlink()
    problems = amiss(results, records)
    if not given.keys:
        problems += silent(sorted(COUNTEREXAMPLES.glob("*.py")), given.jobs)
    for line in problems:
        print(line, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
