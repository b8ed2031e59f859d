"""The certificate and its page: a schema that fits, a page that is whole and safe, a terminal that fits."""

import importlib.util
import io
import json
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import msgspec
import pytest
from rich.console import Console

import verified_losses
from verified_losses.properties.cases import Case
from verified_losses.properties.contracts import contracts
from verified_losses.properties.examples import Example
from verified_losses.properties.show import certificate as records
from verified_losses.properties.show import drawn, terminal
from verified_losses.properties.show.certificate import Asked, Certificate, Certificates
from verified_losses.properties.show.defects import Defect
from verified_losses.properties.show.html import Distribution, read_codes, render
from verified_losses.properties.subjects import SHIPPED, Subject
from verified_losses.properties.verify.certifier import Check, Finding, checks
from verified_losses.properties.verify.known import Entry, Known
from verified_losses.properties.verify.plan import not_verified, own_checks
from verified_losses.properties.verify.shards import Shard
from verified_losses.properties.worlds import table
from verified_losses.properties.worlds.specs import parse

SUBJECT = Subject("verified_losses:ClipLoss")
HOSTILE = (
    "</pre><script>alert(1)</script><img src=x onerror=alert(2)> & [bold red]red[/] \x1b[31m \x00 \ud800"
)
VOID = {"meta", "link", "img", "br", "hr", "input", "wbr"}
"""Elements that are not closed."""


def _checks(label: str = "ClipLoss") -> list[Check]:
    return list(checks({label: ("clip", SUBJECT)}, parse("1,2,3,sim:2-8")))


def _holding(check: Check, case: Case | None = None) -> Finding:
    case = case or Case(rows=(3, 5), width=17, options=(("local_loss", True), ("weight", 0.5)))
    return Finding(check, 7, "holds", (0.0, 1e-9, 0.02, 1.0), (Case(), case, case, case), 0.5)


def _falsified(check: Check, reason: str = "Falsified: expected 1, observed 2") -> Finding:
    return replace(_holding(check), verdict="falsified", reason=reason, smallest=Example(Case(rows=(2,))))


def _certificate(findings: list[Finding], known: Known | None = None) -> Certificate:
    asked = Asked(7, 25, "1,sim:2-8", "verified-losses certify x:Y --as clip")
    complete = not any(one.not_run for one in findings)
    return records.certificate(
        SUBJECT, "clip", findings, [], asked, known or Known(), ["CUDA: none"], complete
    )


class _Page(HTMLParser):
    """Reads a page, and insists that every element is closed where it ought to be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def _page(record: Certificate | Certificates, codes: dict[str, str] | None = None) -> _Page:
    """Render, and check what must be true of every page."""
    text = render(record, codes or {})
    page = _Page(text)
    assert page.seen["script"] == page.seen["img"] == page.seen["link"] == page.seen["iframe"] == 0
    assert page.seen["h1"] == 1
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "src"]
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in "".join(page.values("href"))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in page.values("href")} <= set(ids)
    scoped = [tag for tag, name, _ in page.attributes if name == "scope"]
    assert len(scoped) == page.seen["th"]
    return page


def _validate(record: Certificate | Certificates, path: Path) -> None:
    records.write(record, path)
    schema = records.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(path.read_text()), schema)


def test_the_schema_fits_what_is_written(tmp_path: Path) -> None:
    findings = [_holding(check) for check in _checks()]
    findings[0] = _falsified(findings[0].check, HOSTILE)
    findings[1] = Finding(findings[1].check, 7, "skipped", reason="out of time", not_run=True)
    one = _certificate(findings)
    for record in (one, _certificate([]), records.together([one, _certificate([])])):
        _validate(record, tmp_path / "record.json")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: record.pop("seed"),
        lambda record: record.update(verdict="perhaps"),
        lambda record: record["properties"][0].update(examples="many"),
        lambda record: record["drawn"]["dtype"].update(float64=None),
    ],
)
def test_the_schema_refuses_what_is_no_certificate(tmp_path: Path, spoil) -> None:
    path = tmp_path / "record.json"
    records.write(_certificate([_holding(_checks()[0])]), path)
    record = json.loads(path.read_text())
    spoil(record)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record, records.schema())


def test_a_saved_record_gives_the_same_page(tmp_path: Path) -> None:
    one = _certificate([_falsified(check) for check in _checks()])
    for record in (one, records.together([one, _certificate([])])):
        records.write(record, tmp_path / "record.json")
        again = records.decode((tmp_path / "record.json").read_bytes())
        assert again == record
        assert render(again, {}) == render(record, {})


def test_a_page_shows_every_check_and_what_was_drawn() -> None:
    planned = _checks()
    page = _page(_certificate([_holding(check) for check in planned]))
    text = " ".join(" ".join(page.text).split())
    assert f"✓ holds {len(planned)} checks over {4 * len(planned)} cases: {len(planned)} hold" in text
    for check in planned:
        assert check.law.name in text
        assert check.world.name in text
    assert page.seen["svg"] == len({check.law.name for check in planned})
    for told in (
        "8-15",
        "16-31",
        "local_loss=True",
        "weight",
        "unequal",
        "seed 7",
        "--as clip",
        "CUDA: none",
    ):
        assert told in text


def test_a_shard_says_so_and_what_the_others_verify(tmp_path: Path) -> None:
    planned, shard = _checks(), Shard(0, 2)
    own = own_checks(planned, shard)
    falsified = _falsified(own[0])
    part = records.part("ClipLoss", SUBJECT, shard, planned, [falsified], ["interrupted"])
    record = msgspec.structs.replace(_certificate([falsified, _holding(own[1])]), shard=part)
    _validate(record, tmp_path / "certificate.json")
    assert records.decode((tmp_path / "certificate.json").read_bytes()) == record
    assert part is not None
    assert [(one.property, one.world) for one in part.others] == [
        (check.law.name, check.world.name) for check in planned if check not in own
    ]
    assert [Example.from_json(one.example) for one in part.found] == [falsified.smallest]
    text = "".join(_page(record).text)
    assert "shard 1 of 2: the verdict is that of its own checks" in text
    assert f"{len(planned) - len(own)} checks of other shards" in text
    assert records.part("ClipLoss", SUBJECT, Shard(), planned, [], []) is None


def test_a_page_shows_counterexamples_with_their_code_once(tmp_path: Path) -> None:
    file = tmp_path / "case <1>.py"
    file.write_text("print('</pre><script>')  # \x1b[31m\n")
    certificate = _certificate([_falsified(check) for check in _checks()[:3]])
    named = [msgspec.structs.replace(one, counterexample=str(file)) for one in certificate.properties]
    certificate = msgspec.structs.replace(certificate, properties=named)
    page = _page(certificate, read_codes(certificate))
    assert "".join(page.text).count("print('</pre><script>')  # ␛[31m") == 1
    assert page.seen["article"] == 3
    assert "Case(rows=(2,)" in "".join(page.text)
    assert "3 checks over 12 cases: 3 falsified" in " ".join(" ".join(page.text).split())
    file.unlink()
    assert read_codes(certificate) == {}
    _page(certificate)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    check = _checks("[bold]<script>")[0]
    known = Known([Entry(check.law.name, HOSTILE)])
    for accepted in (Known(), known):
        record = _certificate([_falsified(check, HOSTILE)], accepted)
        page = _page(record)
        shown = "".join(page.text)
        assert (
            "<script>alert(1)</script><img src=x onerror=alert(2)> & [bold red]red[/] ␛[31m ␀ \\ud800"
            in shown
        )
        _validate(record, tmp_path / "record.json")
    out = io.StringIO()
    console = Console(file=out, width=100, emoji=False)
    console.print(terminal.table([_falsified(check, HOSTILE)], Known()))
    terminal.show(console, [Defect(_falsified(check, HOSTILE))], Known())
    assert "[bold red]red[/]" in out.getvalue()
    assert "[bold]<script>" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_nothing_found_and_known_findings_and_several_targets() -> None:
    assert "Nothing ran." in "".join(_page(_certificate([])).text)
    check = _checks()[0]
    accepted = _certificate([_falsified(check)], Known([Entry(check.law.name, "as agreed")]))
    assert accepted.verdict == "holds"
    shown = "".join(_page(accepted).text)
    assert "Known findings" in shown
    assert "as agreed" in shown
    assert "Counterexamples" not in shown
    late = Finding(check, 7, "skipped", reason="out of time", not_run=True)
    several = records.together([accepted, _certificate([_falsified(check)]), _certificate([late])])
    page = _page(several)
    assert page.seen["section"] == 3
    shown = " ".join(" ".join(page.text).split())
    assert "3 targets" in shown
    assert "out of time" in shown
    assert "✗ falsified 3 checks over 8 cases: 1 falsified, 1 known, 1 skipped" in shown
    assert "◐ incomplete 1 check over 0 cases: 1 skipped" in shown


def test_a_distribution_counts_every_ratio_where_it_lies() -> None:
    ratios = [0.0, 0.0, 1e-300, 1e-7, 1e-5, 0.9999, 1.0]
    shown = Distribution.of("any", ratios)
    assert [bar.cases for bar in shown.bars] == [2, 2, 1, 2]
    assert [bar.values for bar in shown.bars[:2]] == ["exactly 0", "under 1e-05"]
    assert (shown.cases, shown.worst, shown.median) == (7, 1.0, 1e-7)


def test_what_was_drawn_is_counted() -> None:
    caption, clip = contracts()["coca"], contracts()["clip"]
    case = Case(
        rows=(3, 5), width=17, pads="tail", scale=0.07, bias=-10.0, frozen=("image_features", "logits")
    )
    check = _checks()[0]
    of_caption = replace(_holding(check, case), check=replace(check, contract=caption))
    counted = drawn.count([of_caption])
    assert counted["rows x width"] == {"1 x 1": 1, "8-15 x 16-31": 3}
    assert counted["padding"] == {"none": 1, "tail": 3}
    assert counted["frozen"] == {"image_features": 3, "logits": 3, "nothing": 1}
    assert counted["logit scale"] == {"0.01 to 0.1": 3, "1 to 10": 1}
    assert counted["logit bias"] == {"-100 to -10": 3, "none": 1}
    assert counted["world"] == {check.world.name: 4}
    assert "padding" not in drawn.count([replace(of_caption, check=replace(check, contract=clip))])
    gathered = drawn.count([replace(of_caption, check=replace(check, contract=contracts()["gather"]))])
    assert "logit scale" not in gathered
    assert drawn.count([]) == {}


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (1e-200, "0 to 0.001"), (-1e-4, "-0.001 to 0"), (1.0, "1 to 10"), (None, "none")],
)
def test_decades(value: float | None, shown: str) -> None:
    assert drawn.decade(value) == shown


def test_spans_sort_by_size() -> None:
    spans = [drawn.span(number) for number in (200, 1, 2, 16, 9, 4)]
    assert sorted([*spans, "none", "-100", "0 to 1"], key=drawn.in_order) == [
        "-100", "0 to 1", "1", "2-3", "4-7", "8-15", "16-31", "128-255", "none",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "label", ["x", "exchange_bidir", "ALossWithAVeryLongNameThatStillHasToFitSomewhere" * 2]
)
@pytest.mark.parametrize("width", [60, 100])
def test_the_terminal_summary_fits(label: str, width: int) -> None:
    findings = [_holding(check) for check in _checks(label)]
    findings += [_falsified(check, "word " * 60 + "w" * 900) for check in _checks(label)]
    out = io.StringIO()
    console = Console(file=out, width=width, emoji=False)
    console.print(terminal.table(findings, Known()))
    terminal.show(console, [Defect(one) for one in findings], Known())
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    joined = "".join(lines).replace(" ", "")
    for column in ("loss", "property", "world", "examples", "error/bound", "verdict"):
        assert column in lines[0]
    assert "…" not in joined
    if label == "exchange_bidir" and width == 100:
        assert lines.index("") == 1 + len(findings), "a line was folded"


CHROMIUM = shutil.which("chromium")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on PATH: no page is opened in a browser")
def test_a_browser_shows_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(render(_certificate([_falsified(check) for check in _checks()]), {}))
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]  # fmt: skip
    shot, paper = tmp_path / "page.png", tmp_path / "page.pdf"
    for option in (f"--screenshot={shot}", f"--print-to-pdf={paper}"):
        subprocess.run([*command, option, page.as_uri()], check=True, capture_output=True, timeout=120)
    assert shot.read_bytes().startswith(b"\x89PNG")
    assert paper.read_bytes().startswith(b"%PDF")


def _changes(subject: Subject, *edits: tuple[Path, str]) -> bool:
    """Whether writing files changes the hash of a subject's source."""
    before = records.source_hash(subject)
    for file, content in edits:
        file.write_text(content)
    return records.source_hash(subject) != before


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a module, a package and a package without __init__.py, all of them importable."""
    for name in ("alone_here.py", "packed_here/__init__.py", "packed_here/inner/a.py", "spread_here/a.py"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_source_of_a_file_or_a_module_is_that_file_alone(folder: Path) -> None:
    mine = folder / "alone_here.py"
    for target in (f"{mine}:Loss", "alone_here:Loss"):
        subject = Subject(target)
        assert not _changes(subject, (folder / "beside.py", target))
        assert not _changes(subject, (folder / "packed_here" / "inner" / "a.py", target))
        assert _changes(subject, (mine, f"target = {target!r}\n"))


@pytest.mark.parametrize("package", ["packed_here", "spread_here"])
def test_the_source_of_a_package_is_all_of_it(folder: Path, package: str) -> None:
    subject = Subject(f"{package}.a:Loss")
    a, b = folder / package / "a.py", folder / package / "b.py"
    assert not _changes(subject, (folder / "alone_here.py", "y = 2\n"))
    assert not _changes(subject, (folder / package / "notes.txt", "y = 2\n"))
    assert _changes(subject, (a, "x = 1\ny = 2\n"), (b, "z = 3\n"))
    assert _changes(subject, (a, "x = 1\n"), (b, "y = 2\nz = 3\n")), "a line moved to another file"
    before = records.source_hash(subject)
    b.rename(folder / package / "c.py")
    assert records.source_hash(subject) != before, "a file has another name"


def test_the_losses_are_hashed_apart_from_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "verified_losses"
    for name in ("__init__.py", "clip.py", "oracles/clip.py", "properties/cases.py"):
        (installed / name).parent.mkdir(parents=True, exist_ok=True)
        (installed / name).write_text("x = 1\n")
    package = importlib.util.spec_from_file_location(
        "verified_losses", installed / "__init__.py", submodule_search_locations=[str(installed)]
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    monkeypatch.setattr(records.verified_losses, "__file__", str(installed / "__init__.py"))

    def digests() -> tuple[str, str, str]:
        issuer = records.issuer.__wrapped__()
        return records.source_hash(SUBJECT), issuer.oracles, issuer.properties

    for place, name in enumerate(("clip.py", "oracles/clip.py", "properties/cases.py")):
        before = digests()
        (installed / name).write_text("x = 2\n")
        changed = [one != other for one, other in zip(before, digests(), strict=True)]
        assert changed == [other == place for other in range(3)]


def test_a_certificate_names_its_issuer() -> None:
    issuer = _certificate([]).issuer
    assert issuer.version == verified_losses.__version__
    assert len({issuer.oracles, issuer.properties, records.source_hash(SUBJECT)}) == 3
    shown = "".join(_page(_certificate([])).text)
    for told in (issuer.version, issuer.oracles, issuer.properties):
        assert told in shown


@pytest.mark.parametrize(
    ("device", "said"),
    [(False, "CUDA: no device here"), (True, "CUDA: not verified: every tensor was on the CPU")],
)
def test_cuda_is_not_verified_with_a_device_either(
    monkeypatch: pytest.MonkeyPatch, device: bool, said: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: device)
    assert [line for line in not_verified(_checks()) if line.startswith("CUDA")] == [said]


@pytest.mark.parametrize("contract", ["clip", "siglip", "exchange", "cross_entropy"])
def test_a_convention_is_stated_where_the_contract_has_one(contract: str) -> None:
    subject = Subject("verified_losses:ClipLoss", ("open_clip",))
    record = records.certificate(
        subject, contract, [], [], Asked(0, 1, "1"), Known(), ["CUDA: none"], complete=True
    )
    stated = "open_clip" if contract == "clip" else ""
    assert record.convention == stated
    shown = "".join(_page(record).text)
    assert shown.count(f"convention {stated}") == 2 if stated else "convention" not in shown


def test_losses_that_did_not_run_over_horovod_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "horovod_missing", lambda: None)
    asked = {name: SHIPPED[name] for name in ("siglip", "exchange", "exchange_bidir")}

    def said(world: str) -> list[str]:
        lines = not_verified(list(checks(asked, parse(world))))
        return [line for line in lines if line.startswith("Horovod")]

    assert said("2,hvd:2") == ["Horovod: exchange, exchange_bidir did not run over it"]
    assert len(said("2")) == 1
    del asked["exchange"], asked["exchange_bidir"]
    assert said("2,hvd:2") == []
