"""Makes verified_losses/certificate.json, which travels with the package, of the records in build/.

    python tools/certificate.py [RECORD...] [--key PRIVATE_KEY]    # `make certificate KEY=...`

A RECORD is what `verified-losses certify --json` or `fuzz` wrote of the shipped losses. If none is named,
these are taken, where they are there: build/certificate.json (`make verify`), build/horovod.json (`make
horovod`), build/gpu/certificate.json, build/gpu/nccl.json (`make gpu`). Of the suite itself are
build/defects.json (`make defects`), build/soak.json (`make soak`) and tests/mutants.json (`make mutants`);
the certificate names those that are not there. What an earlier certificate says of CUDA, defects and the soak
is kept until there is a new one, and is said to be stale where a source has changed.

The same records, of the same source, give the same file. A private key, ed25519 in PEM, signs it:
verified_losses/certificate.dsse.json. Exit status: 0 written, 1 a record is falsified, 2 it cannot be made.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests import mutants as tried  # noqa: E402
from verified_losses import __version__, certified  # noqa: E402
from verified_losses.properties import devices  # noqa: E402
from verified_losses.properties.show.certificate import (  # noqa: E402
    Certificate,
    Certificates,
    Property,
    decode,
    stamp,
)
from verified_losses.properties.subjects import SHIPPED  # noqa: E402
from verified_losses.properties.worlds.table import KINDS  # noqa: E402

RECORDS = ("certificate.json", "horovod.json", "gpu/certificate.json", "gpu/nccl.json")
BUILD = ROOT / "build"
OUTPUT = ROOT / certified.PACKAGE / certified.NAME
JSON = dict[str, Any]


class Refused(Exception):
    """The certificate cannot be made; the message says why, and what to run."""


def read(path: Path, source: str) -> list[Certificate]:
    """Return the record of every loss that a file holds.

    Args:
        path: the file.
        source: the SHA-256 of the losses' source, as records have it.

    Raises:
        Refused: it holds no record of the shipped losses as they are now.
    """
    try:
        record = decode(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: expected a record of `verified-losses certify`, got {error}") from error
    found = record.certificates if isinstance(record, Certificates) else [record]
    shipped = {subject.target for _, subject in SHIPPED.values()}
    for one in found:
        if one.target not in shipped:
            raise Refused(f"{path}: expected a record of the shipped losses, got one of {one.target}")
        if one.source != source:
            raise Refused(f"{path}: the losses have changed since: run again what wrote it, or remove it")
        if not one.date:
            raise Refused(f"{path}: it has no date: run again what wrote it, or remove it")
        if one.shard is not None:
            raise Refused(
                f"{path}: expected a whole run, got a shard: `verified-losses merge` makes one of all"
            )
    return found


def backend_of(row: Property) -> str:
    """Return how the ranks of a check talked: "none" for one process, "simulated" for threads of one."""
    kind = KINDS[row.world.partition(":")[0].partition(" ")[0]]
    if kind.inside is not None:
        return "simulated" if kind.shares_process else "none"
    return kind.over.lower()


def runs(found: Sequence[Certificate]) -> list[JSON]:
    """Return what a record says, apart for each kind of device."""
    kinds = dict.fromkeys(
        devices.kind_of(one) for record in found for row in record.properties for one in row.device.split("/")
    )
    return [_run(found, kind) for kind in kinds]


def _run(found: Sequence[Certificate], kind: str) -> JSON:
    first = found[0]
    rows = [
        (record, row) for record in found for row in record.properties
        if kind in {devices.kind_of(one) for one in row.device.split("/")}
    ]  # fmt: skip
    dtypes: Counter[str] = Counter()
    for record in found:
        dtypes.update(record.drawn.get("dtype", {}))
    places = dict.fromkeys((row.device, backend_of(row)) for _, row in rows if row.examples)
    environments = []
    for device, backend in places:
        own = [row for _, row in rows if (row.device, backend_of(row)) == (device, backend)]
        facts = [one for one in first.devices if one.device in device.split("/")]
        environments.append(
            {
                "torch": first.versions["torch"] if not facts else facts[0].torch,
                "python": ".".join(first.versions["python"].split(".")[:2]),
                "platform": first.versions["platform"], "device": kind, "backend": backend,
                "device_name": facts[0].name if facts else "", "driver": facts[0].driver if facts else "",
                "cuda": facts[0].cuda if facts else "", "nccl": facts[0].nccl if facts else "",
                "dtypes": sorted(dtypes),
                "worlds": list(dict.fromkeys(row.world for row in own if row.examples)),
                "examples": sum(row.examples for row in own),
            }
        )  # fmt: skip
    return {
        "date": first.date, "seed": first.seed, "max_examples": first.max_examples, "worlds": first.worlds,
        "versions": first.versions, "dtypes": dict(sorted(dtypes.items())),
        "suite": {"version": first.issuer.version, **_digests(first)},
        "environments": environments,
        "losses": [_loss(record, [row for one, row in rows if one is record]) for record in found],
        "not_verified": list(dict.fromkeys(line for record in found for line in record.not_verified)),
    }  # fmt: skip


def _digests(record: Certificate) -> dict[str, str]:
    return {"oracles": record.issuer.oracles, "properties": record.issuer.properties}


def _loss(record: Certificate, rows: Iterable[Property]) -> JSON:
    laws: dict[str, JSON] = {}
    for row in rows:
        law = laws.setdefault(row.property, {"verdicts": {}, "examples": {}, "worst_error_over_bound": 0.0})
        law["verdicts"][row.world] = row.verdict
        if row.examples:
            law["examples"][row.world] = row.examples
        law["worst_error_over_bound"] = max(law["worst_error_over_bound"], row.worst_error_over_bound)
        if row.reason:
            law.setdefault("reasons", {})[row.world] = row.reason
    return {
        "target": record.target, "contract": record.contract, "convention": record.convention,
        "verdict": record.verdict, "laws": laws,
    }  # fmt: skip


def tests_of(every: Iterable[JSON]) -> dict[str, list[str]]:
    """Return the names of the tests, as the predicate has them: a loss and a law, in whichever world."""
    verdicts: dict[str, set[str]] = {}
    for run in every:
        for loss in run["losses"]:
            for law, found in loss["laws"].items():
                name = f"{loss['target'].partition(':')[2]}: {law}"
                verdicts.setdefault(name, set()).update(found["verdicts"].values())
    failed = [name for name, seen in verdicts.items() if "falsified" in seen]
    passed = [name for name, seen in verdicts.items() if "holds" in seen and name not in failed]
    warned = [name for name in verdicts if name not in passed and name not in failed]
    return {"passedTests": sorted(passed), "warnedTests": sorted(warned), "failedTests": sorted(failed)}


def section(path: Path, make: str, now: dict[str, str], said: Any, before: JSON) -> JSON:
    """Return what a record of the suite itself says; without one, what an earlier certificate says of it.

    Args:
        path: the record.
        make: what writes it.
        now: the digests of the sources.
        said: returns the section's fields, and a line that sums them up, of the record's fields.
        before: this section of the earlier certificate.
    """
    try:
        record = json.loads(path.read_text())
        fields, summary = said(record)
        stamped: dict[str, str] = record["stamp"]
    except OSError:
        if "stamp" not in before:
            return {"skipped": f"not run: `{make}` does"}
        fields, stamped = before, before["stamp"]
        summary = before["summary"].partition(f" (of {stamped['date']};")[0]
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(
            f"{path}: expected what `{make}` writes, got {type(error).__name__}: {error}"
        ) from error
    names = ("source", "oracles", "properties")
    since = [name for name in names if stamped[name] != now[name]]
    stale = f" (of {stamped['date']}; since then changed: {', '.join(since)})" if since else ""
    return {**fields, "stamp": stamped, "stale": since, "summary": summary + stale}


def defects(record: JSON) -> tuple[JSON, str]:
    """Return the fields and the line of planted defects."""
    counts = record["counts"]
    summary = f"{counts['caught']} of {counts['tried']} planted defects caught"
    if counts["tried"] < counts["defects"]:
        summary += f", {counts['defects'] - counts['tried']} not tried"
    summary += f"; {counts['accused']} of {counts['right_tried']} right variants accused"
    if counts["right_tried"] < counts["right"]:
        summary += f", {counts['right'] - counts['right_tried']} not tried"
    return {**counts, "seeds": record["seeds"]}, summary


def mutants() -> JSON:
    """Return what is known of the mutants of all functions (`make mutants`), as they are now."""
    known = list(tried.known().values())
    if not known:
        return {"skipped": "not run: `make mutants` does"}
    counts = {
        "killed": sum(one["killed"] for one in known),
        "equivalent": sum(one["equivalent"] for one in known),
        "survived": sum(len(one["survived"]) for one in known),
    }
    score = counts["killed"] / max(counts["killed"] + counts["survived"], 1)
    every = len(tried.every())
    dates = min(one["date"] for one in known), max(one["date"] for one in known)
    summary = f"{score:.1%} of the mutants killed: " + ", ".join(f"{n} {name}" for name, n in counts.items())
    summary += f"; of {len(known)} of {every} functions" if len(known) < every else ""
    return {
        "functions": every, "known": len(known), "counts": counts, "score": score, "dates": list(dates),
        "summary": f"{summary} ({' to '.join(dict.fromkeys(dates))})",
    }  # fmt: skip


def soak(record: JSON) -> tuple[JSON, str]:
    """Return the fields and the line of a soak."""
    checks = len(record["verdicts"])
    summary = f"{record['wrong']} of {checks} checks wrong in {record['minutes']:g} minutes"
    names = ("seed", "minutes", "wrong")
    return {
        "checks": checks,
        **{name: record[name] for name in names},
    }, f"{summary}, seeds from {record['seed']}"


def earlier(output: Path) -> JSON:
    """Return the sections that an earlier certificate holds, of CUDA and of the suite itself."""
    try:
        said = json.loads(output.read_text())["predicate"][certified.PACKAGE]
        return {name: said[name] for name in ("cuda", "defects", "soak")}
    except FileNotFoundError:
        return {"cuda": [], "defects": {}, "soak": {}}
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(
            f"{output}: expected a certificate that this wrote, got {type(error).__name__}: {error}; "
            "remove it to begin anew"
        ) from error


def statement(records: Sequence[Path], build: Path, output: Path) -> JSON:
    """Return the certificate.

    Args:
        records: those of runs.
        build: the folder of the records of the suite itself.
        output: where an earlier certificate may be.

    Raises:
        Refused: it cannot be made.
    """
    now, before = stamp(), earlier(output)
    every = [run for path in records for run in runs(read(path, now["source"]))]
    if not every:
        raise Refused("no record of a run: `make verify` writes build/certificate.json")
    subject = [{"name": name, "digest": {"sha256": value}} for name, value in certified.sources().items()]
    on_cuda = [{**run, "subject": subject} for run in every if run["environments"][0]["device"] == "cuda"]
    on_cuda = [{**run, "digest": certified.digest(run)} for run in on_cuda] or before["cuda"]
    others = [run for run in every if run["environments"][0]["device"] != "cuda"]
    suites = {(run["suite"]["oracles"], run["suite"]["properties"]) for run in others}
    if len(suites) != 1:
        raise Refused(
            "expected records of one state of the suite, on the CPU: run again those that are older"
        )
    ((oracles, properties),) = suites
    skipped = _skipped(others, on_cuda)
    named = tests_of(every)
    incomplete = any(loss["verdict"] == "incomplete" for run in every for loss in run["losses"])
    suite = {"oracles": oracles, "properties": properties}
    return {
        "_type": certified.STATEMENT_TYPE,
        "subject": subject,
        "predicateType": certified.PREDICATE_TYPE,
        "predicate": {
            "result": "FAILED" if named["failedTests"] else "WARNED" if incomplete else "PASSED",
            "configuration": [
                {"name": f"{certified.PACKAGE}/{name}", "digest": {"sha256": value},
                 "annotations": {"of": "the names and contents of its Python files"}}
                for name, value in suite.items()
            ],
            **named,
            certified.PACKAGE: {
                "version": __version__, "date": max(run["date"] for run in others),
                "runs": others, "cuda": on_cuda, "skipped": skipped,
                "defects": section(build / "defects.json", "make defects", now, defects, before["defects"]),
                "mutants": mutants(),
                "soak": section(build / "soak.json", "make soak", now, soak, before["soak"]),
            },
        },
    }  # fmt: skip


def _skipped(others: Sequence[JSON], on_cuda: Sequence[JSON]) -> list[str]:
    """Return what no run verified, and why; what one run left out, another may have verified."""
    done = {one["backend"] for run in [*others, *on_cuda] for one in run["environments"]}
    done |= {"cuda"} if on_cuda else set()
    lines = dict.fromkeys(line for run in others for line in run["not_verified"])
    return [line for line in lines if line.partition(":")[0].lower() not in done]


def sign(made: JSON, key: Path) -> bytes:
    """Return a DSSE envelope around a certificate.

    Raises:
        Refused: the key cannot be read, or is of another kind.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

    try:
        private = load_pem_private_key(key.read_bytes(), None)
        signer = CryptoSigner(private)  # type: ignore[arg-type]
    except (OSError, TypeError, ValueError) as error:
        raise Refused(
            f"{key}: expected an ed25519 private key in PEM, without a password: {error}"
        ) from error
    envelope = Envelope(certified.canonical(made), certified.PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return json.dumps(envelope.to_dict(), indent=1).encode() + b"\n"


def main() -> int:
    """Write the certificate; return the exit status."""
    parser = argparse.ArgumentParser(description="Make the certificate that travels with the package.")
    parser.add_argument(
        "records", nargs="*", type=Path, help="records of runs; those in build/, if not given"
    )
    parser.add_argument("--key", type=Path, help="an ed25519 private key in PEM, which signs it")
    parser.add_argument("--build", type=Path, default=BUILD, help="where records are looked for")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="what is written")
    arguments = parser.parse_args()
    there = [arguments.build / name for name in RECORDS if (arguments.build / name).is_file()]
    try:
        made = statement(arguments.records or there, arguments.build, arguments.output)
        failed = made["predicate"]["failedTests"]
        if failed:
            print(f"falsified, so nothing is certified: {', '.join(failed)}", file=sys.stderr)
            return 1
        signed = sign(made, arguments.key) if arguments.key else None
    except Refused as error:
        print(error, file=sys.stderr)
        return 2
    arguments.output.write_text(json.dumps(made, sort_keys=True, indent=1, ensure_ascii=False) + "\n")
    envelope = arguments.output.with_name(certified.ENVELOPE)
    if signed:
        envelope.write_bytes(signed)
    else:
        envelope.unlink(missing_ok=True)  # of another certificate
    print(f"written: {arguments.output}{', signed' if signed else ', unsigned'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
