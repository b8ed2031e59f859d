"""The certificate that travels with the package: its maker, its reader, and that it is of this source."""

import base64
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import torch.distributed as dist

import verified_losses
from verified_losses import certified
from verified_losses.properties.ask import signature
from verified_losses.properties.ask.cli import main as verify
from verified_losses.properties.show import certificate as records
from verified_losses.properties.show.certificate import Asked, Certificate, Certificates
from verified_losses.properties.subjects import SHIPPED
from verified_losses.properties.verify.arguments import Unusable
from verified_losses.properties.verify.certifier import Finding, Verdict, checks
from verified_losses.properties.verify.known import Known
from verified_losses.properties.worlds.specs import parse

from . import helpers

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "verified_losses"
SECONDS = 60
DESCRIPTOR = {
    "type": "object",
    "required": ["name", "digest"],
    "properties": {
        "digest": {
            "type": "object",
            "required": ["sha256"],
            "properties": {"sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"}},
        }
    },
}
NAMES = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
SCHEMA = {
    "type": "object",
    "required": ["_type", "subject", "predicateType", "predicate"],
    "properties": {
        "_type": {"const": "https://in-toto.io/Statement/v1"},
        "subject": {"type": "array", "minItems": 1, "items": DESCRIPTOR},
        "predicateType": {"const": "https://in-toto.io/attestation/test-result/v0.1"},
        "predicate": {
            "type": "object",
            "required": ["result", "configuration"],
            "properties": {
                "result": {"enum": ["PASSED", "WARNED", "FAILED"]},
                "configuration": {"type": "array", "items": DESCRIPTOR},
                "passedTests": NAMES,
                "warnedTests": NAMES,
                "failedTests": NAMES,
            },
        },
    },
}
"""As in-toto's specification has a statement and this predicate."""


tool = helpers.tool("certificate")


def test_the_certificate_is_of_this_source() -> None:
    statement = json.loads((PACKAGE / "certificate.json").read_text())
    stated = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    found = certified.sources()
    changed = sorted(name for name in {*stated, *found} if stated.get(name) != found.get(name))
    assert not changed, (
        f"{', '.join(changed)}: not what verified_losses/certificate.json is of. Run `make verify`, and "
        "what else it is to state (`make horovod`, `make defects`, `make mutants`, `make soak`), then "
        "`make certificate`"
    )


def test_the_certificate_is_a_statement_of_in_toto_and_names_no_place() -> None:
    text = (PACKAGE / "certificate.json").read_text()
    statement = json.loads(text)
    jsonschema.validate(statement, SCHEMA)
    assert statement["predicate"]["result"] in ("PASSED", "WARNED")
    assert statement["predicate"]["verified_losses"]["version"] == verified_losses.__version__
    named = [one["name"] for one in statement["subject"]]
    assert {"verified_losses/clip.py", "verified_losses/siglip.py", "verified_losses/gather.py"} <= {*named}
    assert not [name for name in named if "/oracles/" in name or "/properties/" in name]
    assert not [place for place in ("/home/", "/root/", "/tmp/") if place in text]


def _record(
    verdict: Verdict = "holds", device: str = "cpu", undone: str = "Horovod: not here"
) -> Certificates:
    """Return a record of two of the shipped losses, in which nothing was drawn."""
    parts = []
    for label in ("clip", "siglip"):
        contract, subject = SHIPPED[label]
        findings = [
            Finding(check, 7, verdict, (0.25, 0.125), reason="" if verdict == "holds" else "Falsified: no")
            for check in checks({label: (contract, subject)}, parse("1,sim:2,proc:2"))
        ]
        asked = Asked(7, 25, "1,sim:2,proc:2")
        drawn = {"dtype": {"float32": 2}}
        one = records.certificate(
            subject, contract, findings, [], asked, Known(), [undone], True, drawn=drawn
        )
        parts.append(_moved(msgspec.structs.replace(one, date="2020-02-03"), device))
    record = records.together(parts)
    assert isinstance(record, Certificates)
    return record


def _moved(one: Certificate, device: str) -> Certificate:
    """Return a record as if it were of a GPU."""
    if device == "cpu":
        return one
    rows = [
        msgspec.structs.replace(row, device=device, world=f"{row.world} on {device}")
        for row in one.properties
    ]
    facts = {"device": device, "name": "A GPU", "cuda": "12.8", "nccl": "2.27", "torch": "2.13.0+cu128"}
    there = [msgspec.structs.replace(one.devices[0], **facts)]
    return msgspec.structs.replace(one, properties=rows, devices=there)


def _made(folder: Path, *given: Certificates | Certificate, output: Path | None = None) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number}.json" for number in range(len(given))]
    for file, record in zip(files, given, strict=True):
        records.write(record, file)
    return dict(tool.statement(files, folder, output or folder / "none.json"))


def _text(statement: dict[str, Any]) -> str:
    return json.dumps(statement, sort_keys=True, indent=1)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package without the suite, with a certificate of its own, to be spoilt."""
    left_out = shutil.ignore_patterns("oracles", "properties", "__pycache__", "certificate*.json")
    folder = Path(shutil.copytree(PACKAGE, tmp_path / "verified_losses", ignore=left_out))
    (folder / "certificate.json").write_text(_text(_made(tmp_path / "build", _record())))
    monkeypatch.setattr(certified, "__file__", str(folder / "certified.py"))
    return folder


def _edit(copy: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = copy / "certificate.json"
    statement = json.loads(file.read_text())
    change(statement)
    file.write_text(_text(statement))


def test_the_same_records_give_the_same_certificate(tmp_path: Path) -> None:
    first, again = _made(tmp_path / "1", _record()), _made(tmp_path / "2", _record())
    assert first == again
    jsonschema.validate(first, SCHEMA)
    verified = first["predicate"]["verified_losses"]
    (run,) = verified["runs"]
    assert (verified["date"], run["seed"], run["max_examples"]) == ("2020-02-03", 7, 25)
    assert [(one["backend"], one["worlds"]) for one in run["environments"]] == [
        ("none", ["single"]), ("simulated", ["simulated:2"]), ("gloo", ["processes:2"]),
    ]  # fmt: skip
    assert {tuple(one["dtypes"]) for one in run["environments"]} == {("float32",)}
    law = run["losses"][0]["laws"]["terms equal the oracle"]
    assert law["worst_error_over_bound"] == 0.25
    assert law["examples"] == {"single": 2, "simulated:2": 2, "processes:2": 2}
    assert "ClipLoss: terms equal the oracle" in first["predicate"]["passedTests"]
    assert verified["defects"] == {"skipped": "not run: `make defects` does"}
    assert verified["skipped"] == ["Horovod: not here"]


def test_what_another_run_verified_is_not_said_to_be_skipped(tmp_path: Path) -> None:
    record = _record(undone="CUDA: none here")
    made = _made(tmp_path, record, _record(device="cuda:0"))
    verified = made["predicate"]["verified_losses"]
    assert (len(verified["runs"]), len(verified["cuda"]), verified["skipped"]) == (1, 1, [])


def test_the_suite_s_own_records_are_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = records.stamp()
    counts = {"defects": 5, "tried": 4, "caught": 3, "right": 7, "right_tried": 2, "accused": 0}
    found = {
        "defects.json": {"stamp": now, "seeds": [0, 1], "counts": counts, "results": []},
        "soak.json": {"stamp": now, "seed": 8, "minutes": 30.0, "wrong": 0, "verdicts": {"a": "holds"}},
    }  # fmt: skip
    for name, record in found.items():
        (tmp_path / name).write_text(json.dumps(record))
    verified = _made(tmp_path, _record())["predicate"]["verified_losses"]
    assert verified["defects"]["summary"] == (
        "3 of 4 planted defects caught, 1 not tried; 0 of 2 right variants accused, 5 not tried"
    )
    monkeypatch.setattr(tool.tried, "known", dict)
    assert tool.mutants() == {"skipped": "not run: `make mutants` does"}
    one = {"killed": 3, "equivalent": 2, "survived": ["- a\n+ b"], "date": "2019-01-01"}
    monkeypatch.setattr(tool.tried, "every", lambda: dict.fromkeys("abc"))
    monkeypatch.setattr(tool.tried, "known", lambda: {"a": one, "b": {**one, "date": "2019-01-02"}})
    assert tool.mutants()["summary"] == (
        "75.0% of the mutants killed: 6 killed, 4 equivalent, 2 survived; of 2 of 3 functions "
        "(2019-01-01 to 2019-01-02)"
    )
    assert verified["soak"]["summary"] == "0 of 1 checks wrong in 30 minutes, seeds from 8"
    # without a record what an earlier certificate says is kept, and is stale where a source has changed
    earlier = _made(tmp_path, _record())
    earlier["predicate"]["verified_losses"]["defects"]["stamp"].update(source="", date="2019-01-01")
    output = tmp_path / "earlier.json"
    output.write_text(json.dumps(earlier))
    (tmp_path / "defects.json").unlink()
    for _ in range(2):
        again = _made(tmp_path, _record(), output=output)
        assert again["predicate"]["verified_losses"]["defects"]["summary"] == (
            "3 of 4 planted defects caught, 1 not tried; 0 of 2 right variants accused, 5 not tried "
            "(of 2019-01-01; since then changed: source)"
        )
        output.write_text(json.dumps(again))
    (tmp_path / "soak.json").write_text("[]")
    with pytest.raises(tool.Refused, match=r"soak\.json: expected what `make soak` writes, got TypeError"):
        _made(tmp_path, _record())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": "0" * 64}, "the losses have changed since"),
        ({"target": "mine:Loss"}, "expected a record of the shipped losses, got one of mine:Loss"),
        ({"date": ""}, "it has no date"),
    ],
)
def test_a_record_of_something_else_is_refused(tmp_path: Path, change: dict[str, str], said: str) -> None:
    record = _record()
    spoilt = [msgspec.structs.replace(record.certificates[0], **change), *record.certificates[1:]]
    with pytest.raises(tool.Refused, match=said):
        _made(tmp_path, msgspec.structs.replace(record, certificates=spoilt))


def test_without_a_record_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(tool.Refused, match="no record of a run: `make verify` writes build"):
        _made(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"predicate": {"verified_losses": {"cuda": []}}}'])
def test_an_earlier_certificate_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    output = tmp_path / "earlier.json"
    output.write_text(text)
    with pytest.raises(tool.Refused, match=r"earlier\.json: .*; remove it to begin anew"):
        _made(tmp_path, _record(), output=output)


def test_what_is_falsified_gets_no_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records.write(_record("falsified"), tmp_path / "certificate.json")
    output = tmp_path / "made.json"
    monkeypatch.setattr(sys, "argv", ["certificate.py", "--build", str(tmp_path), "--output", str(output)])
    assert tool.main() == 1
    assert "falsified, so nothing is certified: ClipLoss: " in capsys.readouterr().err
    assert not output.exists()


def test_what_was_verified_is_certified(copy: Path) -> None:
    found = verified_losses.certificate(device="cpu")
    assert found
    assert (found.answer, found.reasons) == ("certified", ())
    assert str(found).startswith(f"certified: verified_losses {verified_losses.__version__}, ")
    assert "unsigned: whoever can change the files can change certificate.json too" in found.notes
    assert "not verified: Horovod: not here" in found.notes
    assert verified_losses.certificate("cpu", "gloo")


def _remove(copy: Path) -> None:
    (copy / "siglip.py").unlink()


def _shadow(copy: Path) -> None:
    (copy / "clip").mkdir()
    (copy / "clip" / "__init__.py").write_text("")


def _extension(copy: Path) -> None:
    (copy / "clip.abi3.so").write_bytes(b"")


def _one_bit(copy: Path) -> None:
    text = bytearray((copy / "clip.py").read_bytes())
    text[-1] ^= 1
    (copy / "clip.py").write_bytes(text)


def _blank(copy: Path) -> None:
    with (copy / "checks.py").open("a") as file:
        file.write(" ")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_one_bit, "verified_losses/clip.py: changed"),
        (_blank, "verified_losses/checks.py: changed"),
        (_remove, "verified_losses/siglip.py: missing"),
        (_shadow, "verified_losses/clip/__init__.py: not there when it was verified"),
        (_extension, "verified_losses/clip.abi3.so: not there when it was verified"),
        (
            lambda copy: _edit(copy, lambda it: it["subject"][0]["digest"].update(sha256="0" * 64)),
            "verified_losses/__init__.py: changed",
        ),
        (
            lambda copy: _edit(copy, lambda it: it["subject"].pop(0)),
            "verified_losses/__init__.py: not there when it was verified",
        ),
    ],
)
def test_what_changed_is_named(copy: Path, spoil: Callable[[Path], None], said: str) -> None:
    spoil(copy)
    found = verified_losses.certificate(device="cpu")
    assert not found
    assert (found.answer, found.reasons) == ("changed", (said,))
    assert f"  {said}" in str(found).splitlines()


def test_files_that_python_does_not_import_are_left_alone(copy: Path) -> None:
    (copy / "notes.txt").write_text("")
    (copy / "oracles").mkdir()
    (copy / "oracles" / "clip.py").write_text("")
    assert verified_losses.certificate(device="cpu")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda copy: (copy / "certificate.json").unlink(), "the package holds no certificate.json"),
        (lambda copy: (copy / "certificate.json").write_text("{"), "certificate.json: expected JSON"),
        (lambda copy: (copy / "certificate.json").write_text("[]"), "certificate.json: expected https"),
        (lambda copy: _edit(copy, lambda it: it.update(_type="x")), "certificate.json: expected https"),
        (
            lambda copy: _edit(copy, lambda it: it["predicate"].update(result="FAILED")),
            "states that something is",
        ),
        (
            lambda copy: _edit(copy, lambda it: it["predicate"].pop("verified_losses")),
            "is not as `make certificate`",
        ),
        (
            lambda copy: _edit(copy, lambda it: it.update(subject=[{}])),
            "is not as `make certificate` writes it",
        ),
        (
            lambda copy: _edit(copy, lambda it: it.update(predicate=[])),
            "is not as `make certificate` writes it",
        ),
    ],
)
def test_what_is_no_certificate_is_said(copy: Path, spoil: Callable[[Path], object], said: str) -> None:
    spoil(copy)
    found = verified_losses.certificate(device="cpu")
    assert found.answer == "no certificate"
    assert said in found.reasons[0]
    assert not found


def test_another_environment_is_named(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = verified_losses.certificate("cpu", "nccl")
    assert (found.answer, found.reasons) == (
        "other environment",
        ("backend nccl (verified: gloo, none, simulated)",),
    )
    assert verified_losses.certificate("cuda").reasons == ("device cuda (verified: cpu)",)
    build = certified.environment("cpu")["torch"]
    monkeypatch.setattr(certified, "_torch", lambda: ("2.9.0", ""))
    assert verified_losses.certificate("cpu").reasons == (f"torch 2.9.0 (verified: {build})",)
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    assert len(verified_losses.certificate("cpu").reasons) == 2


def test_the_backend_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda group: "undefined")
    monkeypatch.setattr(dist, "get_backend_config", lambda group: "cpu:gloo,cuda:nccl")
    assert certified.environment("cpu")["backend"] == "gloo"
    assert certified.environment("cuda")["backend"] == "nccl"
    monkeypatch.setattr(dist, "get_backend_config", lambda group: "cuda:nccl")
    assert "backend" not in certified.environment("cpu")


def test_what_was_verified_apart_is_not_verified_together(copy: Path) -> None:
    def change(statement: dict[str, Any]) -> None:
        first = statement["predicate"]["verified_losses"]["runs"][0]["environments"]
        first.append({**first[0], "python": "3.99"})
        for one in first[:-1]:
            one["torch"] = "2.9.0"

    _edit(copy, change)
    here = certified.environment("cpu")
    known = [{**here, "torch": "2.9.0"}, {**here, "python": "3.99"}]
    (line,) = certified._differs(here, known)
    assert line.startswith("each of these was verified, but not together: torch ")
    assert certified._differs(here, []) == ["nothing was verified anywhere"]


@pytest.mark.parametrize(
    ("device", "backend", "said"),
    [
        ("tpu", None, "device: expected cpu or cuda, got 'tpu'"),
        ("", None, "device: expected cpu or cuda, got ''"),
        ("cpu", "mpi", "backend: expected gloo, nccl or horovod, got 'mpi'"),
    ],
)
def test_a_wrong_argument_is_named(device: str, backend: str | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        verified_losses.certificate(device, backend)


def test_a_gpu_is_compared_by_its_name(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _made(tmp_path / "build", _record(), _record(device="cuda:0"))
    (copy / "certificate.json").write_text(_text(made))
    monkeypatch.setattr(certified, "_torch", lambda: ("2.13.0+cu128", "12.8"))
    monkeypatch.setattr(certified, "MODELS", str(tmp_path / "*" / "information"))
    assert verified_losses.certificate("cuda"), "of a GPU whose name is not known, the kind is compared"
    (tmp_path / "0000:01").mkdir()
    for name, answer in (("A GPU", "certified"), ("Another", "other environment")):
        (tmp_path / "0000:01" / "information").write_text(f"Model: \t {name}\nIRQ: 7\n")
        found = verified_losses.certificate("cuda:0")
        assert found.answer == answer, found.reasons
    assert "device_name Another (verified: A GPU" in " ".join(found.reasons)


def test_a_section_of_cuda_is_kept_and_goes_stale(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = copy / "certificate.json"
    file.write_text(_text(_made(tmp_path / "build", _record(), _record(device="cuda:0"))))
    made = _made(tmp_path / "again", _record(), output=file)
    assert json.loads(file.read_text()) == made, "without a new record of it, it is kept as it is"
    monkeypatch.setattr(certified, "_torch", lambda: ("2.13.0+cu128", "12.8"))
    monkeypatch.setattr(certified, "MODELS", "")
    assert verified_losses.certificate("cuda")

    with (copy / "clip.py").open("a") as changed:
        changed.write("\n")
    _edit(copy, lambda it: it.update(subject=_subject()))
    found = verified_losses.certificate("cuda")
    assert found.answer == "other environment"
    assert "stale: CUDA was verified on 2020-02-03, before verified_losses/clip.py changed" in found.notes

    _edit(copy, lambda it: it["predicate"]["verified_losses"]["cuda"][0].update(date="2026-01-01"))
    assert verified_losses.certificate("cuda").reasons == (
        "verified_losses/certificate.json: its section of CUDA, of 2026-01-01",
    )


def _subject() -> list[dict[str, Any]]:
    return [{"name": name, "digest": {"sha256": value}} for name, value in certified.sources().items()]


def test_the_command_answers_from_a_tree_and_from_a_zip_without_torch(copy: Path, tmp_path: Path) -> None:
    archive = tmp_path / "verified.whl"
    with zipfile.ZipFile(archive, "w") as zipped:
        for file in sorted(copy.rglob("*")):
            zipped.write(file, file.relative_to(copy.parent))
    script = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
try:
    runpy.run_module("verified_losses", run_name="__main__", alter_sys=True)
except SystemExit as ended:
    print(ended.code, *sys.modules.keys() & {"torch", "numpy", "msgspec"})
"""
    for place in (copy.parent, archive):
        command = [sys.executable, "-c", script, str(place), "--device", "cpu"]
        done = subprocess.run(
            command, cwd=tmp_path / "build", capture_output=True, text=True, timeout=SECONDS, check=True
        )
        assert done.stdout.startswith("certified: verified_losses "), done.stdout
        assert done.stdout.splitlines()[-1] == "0"
    (copy / "clip.py").unlink()
    command = [sys.executable, "-m", "verified_losses", "--json"]
    done = subprocess.run(
        command, cwd=copy.parent, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["reasons"] == ["verified_losses/clip.py: missing"]


def test_a_reader_that_stops_reading_gets_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "verified_losses"], stdout=closed, stderr=subprocess.PIPE, text=True,
            timeout=SECONDS, check=False,
        )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode in certified.ANSWERS.values()


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private key and its public key."""
    pytest.importorskip("securesystemslib", reason="verified-losses[sign] is not installed")
    from cryptography.hazmat.primitives import serialization as to
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    made = Ed25519PrivateKey.generate()
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    private.write_bytes(made.private_bytes(to.Encoding.PEM, to.PrivateFormat.PKCS8, to.NoEncryption()))
    public.write_bytes(made.public_key().public_bytes(to.Encoding.PEM, to.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def _verify(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        verify(["verify-certificate", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_signature_is_made_and_checked(
    copy: Path, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    private, public = keys
    file, envelope = copy / "certificate.json", copy / "certificate.dsse.json"
    monkeypatch.setattr(verified_losses, "__file__", str(copy / "__init__.py"))
    assert _verify("--key", public) == 1
    assert "unsigned: there is no " in capsys.readouterr().out

    records.write(_record(), tmp_path / "build" / "certificate.json")
    make = ["certificate.py", "--build", str(tmp_path / "build"), "--output", str(file)]
    monkeypatch.setattr(sys, "argv", [*make, "--key", str(private)])
    assert tool.main() == 0
    assert ", signed" in capsys.readouterr().out
    assert verified_losses.certificate("cpu")
    assert _verify("--key", public) in (0, 3)
    printed = capsys.readouterr().out
    assert printed.startswith("signed by ")
    assert _verify(file, "--key", public) == 0
    capsys.readouterr()

    text = file.read_text()
    file.write_text(json.dumps(json.loads(text)))  # laid out in another way
    assert _verify(file, "--key", public) == 0
    file.write_text(text.replace("0.25", "0.01"))
    assert verified_losses.certificate("cpu").reasons == (
        "verified_losses/certificate.json: not what was signed",
    )
    assert _verify(file, "--key", public) == 1
    assert "the signature is of another certificate.json" in capsys.readouterr().out

    # whoever changes both is seen by the signature alone
    whole = json.loads(envelope.read_text())
    payload = certified.canonical(json.loads(file.read_text()))
    envelope.write_text(json.dumps({**whole, "payload": base64.b64encode(payload).decode()}))
    assert verified_losses.certificate("cpu")
    assert _verify(file, "--key", public) == 1
    assert "the envelope names it, with a signature of something else" in capsys.readouterr().out

    file.write_text(text)
    signature = bytearray(base64.b64decode(whole["signatures"][0]["sig"]))
    signature[0] ^= 1
    spoiled = [{**whole["signatures"][0], "sig": base64.b64encode(signature).decode()}]
    envelope.write_text(json.dumps({**whole, "signatures": spoiled}))
    assert _verify(file, "--key", public) == 1
    assert "the envelope names it, with a signature of something else" in capsys.readouterr().out
    envelope.write_text(json.dumps({**whole, "signatures": [{**whole["signatures"][0], "keyid": "another"}]}))
    assert _verify(file, "--key", public) == 1
    assert "not signed by " in (said := capsys.readouterr().out)
    assert "the envelope names another" in said
    file.write_text(text.replace("0.25", "0.01"))

    envelope.write_text("{}")
    assert _verify(file, "--key", public) == 1
    assert "expected a DSSE envelope, got KeyError" in capsys.readouterr().out
    envelope.write_text(json.dumps({**whole, "payloadType": "text/plain"}))
    assert _verify(file, "--key", public) == 1
    assert "expected a payload of application/vnd.in-toto+json, got text/plain" in capsys.readouterr().out

    monkeypatch.setattr(sys, "argv", make)
    assert tool.main() == 0
    assert not envelope.exists(), "a signature of another certificate is taken away"


def test_what_cannot_be_read_is_named(
    copy: Path, keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = keys
    wrong = [
        ([tmp_path / "none.json", "--key", public], "FILE: cannot read "),
        ([private, "--key", public], "FILE: expected JSON in "),
        (["--key", tmp_path / "none.pem"], "--key: cannot read "),
        (["--key", private], "--key: expected a public key in PEM, got "),
    ]
    for arguments, said in wrong:
        assert _verify(*arguments) == 2
        assert said in capsys.readouterr().err


def test_without_the_extra_the_command_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "securesystemslib.signer", None)
    with pytest.raises(Unusable, match=r"pip install 'verified-losses\[sign\]'"):
        signature.read_key(tmp_path / "key.pem")
