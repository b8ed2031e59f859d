"""Is what is installed here what was verified: `verified_losses.certificate()`, `python -m verified_losses`.

The package holds `certificate.json`, an in-toto Statement v1 of the type test-result: every source file of
the losses with its SHA-256, and what was verified of them, where, and with which result. The standard library
alone reads it here, and torch is not imported. Bytecode put into `__pycache__` by hand is not seen.
"""

import binascii
import glob
import hashlib
import json
import os
import re
import sys
from importlib import machinery, util
from typing import Any, Literal, NamedTuple

NAME = "certificate.json"
ENVELOPE = "certificate.dsse.json"
"""Holds the signature, where there is one: a DSSE envelope around the certificate's canonical JSON."""
PACKAGE = "verified_losses"
SUITE = ("oracles", "properties")
"""Folders of the package that are no part of the losses."""
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
ANSWERS = {"certified": 0, "changed": 1, "no certificate": 2, "other environment": 3}
"""Each answer, and the exit status of `python -m verified_losses` for it."""
MODELS = "/proc/driver/nvidia/gpus/*/information"
"""Where the driver says what a GPU is called."""

Answer = Literal["certified", "changed", "no certificate", "other environment"]
Environment = dict[str, str]


class Unreadable(ValueError):
    """There is no certificate that can be read; the message says why."""


class Certificate(NamedTuple):
    """What is installed and where it runs, compared with what was verified. True if it is certified."""

    answer: Answer
    reasons: tuple[str, ...]
    """The files that changed, or how this environment differs from every one in which it was verified."""
    environment: Environment
    """This one: torch, python, platform, device, and backend where it is known."""
    notes: tuple[str, ...]
    """Whether the certificate is signed, what is stale in it, and what was not verified."""
    statement: dict[str, Any]
    """The certificate, as in-toto defines it; empty if there is none."""

    def __bool__(self) -> bool:
        return self.answer == "certified"

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def certificate(device: str | None = None, backend: str | None = None) -> Certificate:
    """Compare the installed source, and where it runs, with the certificate in the package.

    Takes some ten milliseconds, and imports no torch.

    Args:
        device: "cpu" or "cuda", as torch names it; if None, "cuda" where there is a GPU that torch can use.
        backend: how ranks talk: "gloo", "nccl" or "horovod"; if None, that of torch.distributed where this
            process has initialised it, and else none is compared.

    Returns:
        The answer: "certified"; "changed", with the files; "other environment", with what differs; or
        "no certificate", if there is none that can be read.

    Raises:
        ValueError: the device or the backend is none of these.

    Example:
        >>> import verified_losses
        >>> found = verified_losses.certificate()
        >>> found.answer in ("certified", "changed", "other environment", "no certificate")
        True
    """
    kind = (device or "").partition(":")[0]
    if device is not None and kind not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu or cuda, got {device!r}")
    if backend is not None and backend not in ("gloo", "nccl", "horovod"):
        raise ValueError(f"backend: expected gloo, nccl or horovod, got {backend!r}")
    here = environment(kind, backend or "")
    try:
        statement = read()
        verified = statement["predicate"][PACKAGE]
        changed = [*_changed(statement), *_spoilt(verified)]
        notes = _notes(statement, verified)
        differs = _differs(here, _environments(statement, verified))
    except Unreadable as error:
        return Certificate("no certificate", (str(error),), here, (), {})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{NAME} is not as `make certificate` writes it: {type(error).__name__}: {error}"
        return Certificate("no certificate", (reason,), here, (), {})
    if changed:
        return Certificate("changed", tuple(changed), here, tuple(notes), statement)
    answer: Answer = "other environment" if differs else "certified"
    return Certificate(answer, tuple(differs), here, tuple(notes), statement)


def read() -> dict[str, Any]:
    """Return the certificate that lies in this package.

    Raises:
        Unreadable: there is none, it is no JSON, or it states no passed tests of this package.
    """
    text = content(NAME)
    if text is None:
        raise Unreadable(f"the package holds no {NAME}")
    try:
        statement = json.loads(text)
    except ValueError as error:
        raise Unreadable(f"{NAME}: expected JSON, got {error}") from error
    types = (statement.get("_type"), statement.get("predicateType")) if isinstance(statement, dict) else ()
    if types != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise Unreadable(f"{NAME}: expected {STATEMENT_TYPE} of {PREDICATE_TYPE}, got {types}")
    if statement["predicate"]["result"] == "FAILED":
        raise Unreadable(f"{NAME}: states that something is falsified")
    return dict(statement)


def canonical(value: Any) -> bytes:
    """Return the one text that digests and signatures are of: JSON, sorted, without blanks, in UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def sources() -> dict[str, str]:
    """Return the SHA-256 of every source file of the losses, by its path from the package's parent."""
    return {f"{PACKAGE}/{name}": hashlib.sha256(content(name) or b"").hexdigest() for name in _names()}


def content(name: str) -> bytes | None:
    """Return what a file of the package holds; None if there is no such file."""
    try:
        with open(os.path.join(_folder(), name), "rb") as file:
            return file.read()
    except NotADirectoryError:  # in a zip
        try:
            loader: Any = __spec__.loader if __spec__ else None
            return bytes(loader.get_data(os.path.join(_folder(), name)))
        except OSError:
            return None
    except OSError:
        return None


def _folder() -> str:
    return os.path.dirname(os.path.abspath(__file__))


def _names() -> list[str]:
    """Return the paths of all files that Python would import as a part of the losses."""
    folder = _folder()
    names = []
    if os.path.isdir(folder):
        for place, folders, files in os.walk(folder):
            left_out = SUITE if place == folder else ()
            folders[:] = [one for one in folders if one not in (*left_out, "__pycache__")]
            names += [os.path.relpath(os.path.join(place, file), folder) for file in files]
    else:
        from zipfile import ZipFile

        with ZipFile(os.path.dirname(folder)) as archive:
            inside = [one for one in archive.namelist() if one.startswith(f"{PACKAGE}/")]
        names = [one.partition("/")[2] for one in inside]
    importable = tuple(machinery.all_suffixes())
    paths = sorted(name.replace(os.sep, "/") for name in names if name.endswith(importable))
    return [path for path in paths if path.partition("/")[0] not in SUITE]


def _changed(statement: dict[str, Any]) -> list[str]:
    """Return what differs between the files and the certificate, and between it and its envelope."""
    stated = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    found = sources()
    lines = [f"{name}: changed" for name in found if name in stated and found[name] != stated[name]]
    lines += [f"{name}: not there when it was verified" for name in found if name not in stated]
    lines += [f"{name}: missing" for name in stated if name not in found]
    envelope = content(ENVELOPE)
    if envelope is not None and _payload(envelope) != canonical(statement):
        lines.append(f"{PACKAGE}/{NAME}: not what was signed")
    return lines


def _payload(envelope: bytes) -> bytes | None:
    try:
        return binascii.a2b_base64(json.loads(envelope)["payload"])
    except (KeyError, TypeError, ValueError):
        return None


def _spoilt(verified: dict[str, Any]) -> list[str]:
    """Return which sections of CUDA are not what their digests are of."""
    lines = []
    for section in verified["cuda"]:
        rest = {name: value for name, value in section.items() if name != "digest"}
        if digest(rest) != section["digest"]:
            lines.append(f"{PACKAGE}/{NAME}: its section of CUDA, of {section['date']}")
    return lines


def stale(section: dict[str, Any], statement: dict[str, Any]) -> list[str]:
    """Return the files that have changed since a section of CUDA was verified."""
    now = {one["name"]: one["digest"] for one in statement["subject"]}
    then = {one["name"]: one["digest"] for one in section["subject"]}
    return sorted(name for name in {*now, *then} if now.get(name) != then.get(name))


def _environments(statement: dict[str, Any], verified: dict[str, Any]) -> list[Environment]:
    current = [one for one in verified["cuda"] if not stale(one, statement)]
    return [one for run in [*verified["runs"], *current] for one in run["environments"]]


def environment(device: str = "", backend: str = "") -> Environment:
    """Return where this process runs, as certificates say it; torch is not imported.

    Args:
        device: its kind, or nothing to look for a GPU.
        backend: how ranks talk, or nothing to ask torch.distributed.
    """
    version, built_with = _torch()
    has_gpu = built_with and os.path.exists("/proc/driver/nvidia/version")
    kind = device or ("cuda" if has_gpu and os.environ.get("CUDA_VISIBLE_DEVICES") != "" else "cpu")
    python = ".".join(map(str, sys.version_info[:2]))
    here = {"torch": version, "python": python, "platform": sys.platform, "device": kind}
    models = _models() if kind == "cuda" else []
    if models:
        here["device_name"] = models[0]
    distributed = sys.modules.get("torch.distributed")
    if not backend and distributed and distributed.is_available() and distributed.is_initialized():
        from .backends import backend_of  # which imports torch

        backend = backend_of(None, kind)
    return here | ({"backend": backend} if backend else {})


def _torch() -> tuple[str, str]:
    """Return the version of torch, and of the CUDA that it is built with, if any."""
    loaded = sys.modules.get("torch")
    if loaded is not None:
        return str(loaded.__version__), str(loaded.version.cuda or "")
    spec = util.find_spec("torch")
    for folder in (spec and spec.submodule_search_locations) or ():
        try:
            with open(os.path.join(folder, "version.py"), encoding="utf-8") as file:
                text = file.read()
        except OSError:
            continue
        version, cuda = (
            re.search(rf"^{name}\b[^=\n]*= *'([^']*)'", text, re.MULTILINE)
            for name in ("__version__", "cuda")
        )
        return version[1] if version else "unknown", cuda[1] if cuda else ""
    return "not installed", ""


def _models() -> list[str]:
    names = []
    for path in sorted(glob.glob(MODELS)):
        with open(path, encoding="utf-8") as file:
            found = re.search(r"^Model:\s*(.+?)\s*$", file.read(), re.MULTILINE)
        names += [found[1]] if found else []
    return names


def _differs(here: Environment, verified: list[Environment]) -> list[str]:
    """Return how this environment differs from all in which something was verified."""
    known = [
        # a GPU whose name was not found then, or is not found now, is compared by its kind alone
        {name: one[name] for name in here if one.get(name)}
        for one in verified
    ]
    if any(all(one.get(name, value) == value for name, value in here.items()) for one in known):
        return []
    lines = []
    for name, value in here.items():
        others = sorted({one[name] for one in known if name in one})
        if value not in others and others:
            lines.append(f"{name} {value} (verified: {', '.join(others)})")
    if not verified:
        return ["nothing was verified anywhere"]
    return lines or ["each of these was verified, but not together: " + _named(here)]


def _named(here: Environment) -> str:
    return ", ".join(f"{name} {value}" for name, value in here.items())


def _notes(statement: dict[str, Any], verified: dict[str, Any]) -> list[str]:
    lines = []
    for section in verified["cuda"]:
        names = stale(section, statement)
        if names:
            lines.append(f"stale: CUDA was verified on {section['date']}, before {', '.join(names)} changed")
    lines += [f"not verified: {reason}" for reason in verified["skipped"]]
    if content(ENVELOPE) is None:
        lines.append(f"unsigned: whoever can change the files can change {NAME} too")
    else:
        lines.append("signed; to check by whom: verified-losses verify-certificate --key PUBLIC_KEY")
    return lines


def _lines(found: Certificate) -> list[str]:
    """Return the lines that `python -m verified_losses` prints."""
    lines = [found.answer, *(f"  {reason}" for reason in found.reasons)]
    lines.append(f"here: {_named(found.environment)}")
    if not found.statement:
        return lines
    verified = found.statement["predicate"][PACKAGE]
    lines[0] += f": {PACKAGE} {verified['version']}, {len(found.statement['subject'])} source files, "
    lines[0] += f"verified on {verified['date']}"
    for run in [*verified["runs"], *verified["cuda"]]:
        for one in run["environments"]:
            where = f"torch {one['torch']}, Python {one['python']}, {one['platform']}, {one['device']}"
            where += f" ({one['device_name']})" if one["device_name"] else ""
            where += "" if one["backend"] in ("none", "simulated") else f", {one['backend']}"
            lines.append(f"verified: {where}: {one['examples']} cases in {', '.join(one['worlds'])}")
    sections = {name: verified[name] for name in ("defects", "mutants", "soak")}
    lines += [f"{name}: {one.get('summary') or one['skipped']}" for name, one in sections.items()]
    return lines + list(found.notes)
