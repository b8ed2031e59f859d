"""The API: a certificate, or an exception that a person can act on."""

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from verified_losses import ClipLoss
from verified_losses.properties import NotCertified, certification, certify
from verified_losses.properties.ask import pytest_plugin
from verified_losses.properties.ask.api import conclude
from verified_losses.properties.cases import Case
from verified_losses.properties.examples import Example
from verified_losses.properties.laws import Falsified, Place
from verified_losses.properties.options import CertifyOptions
from verified_losses.properties.show import terminal
from verified_losses.properties.show.defects import Defect
from verified_losses.properties.verify import certifier
from verified_losses.properties.verify.arguments import ask
from verified_losses.properties.verify.certifier import Certifier, Check, Finding
from verified_losses.properties.verify.known import Known
from verified_losses.properties.verify.plan import plan


class Doubled(ClipLoss):
    def _contrastive(self, *arguments: Any) -> Any:
        return 2 * super()._contrastive(*arguments)


def test_what_holds_returns_its_certificate() -> None:
    certificate = certify(ClipLoss, "clip", world="1", max_examples=3, only="terms*")
    assert certificate.verdict == "holds"
    assert certificate.target == "verified_losses.clip:ClipLoss"
    assert [(one.property, one.verdict) for one in certificate.properties] == [
        ("terms equal the oracle", "holds")
    ]


def test_what_does_not_hold_raises_with_the_smallest_case(tmp_path: Path) -> None:
    with pytest.raises(NotCertified) as raised:
        certify(
            Doubled, "clip", world="1", max_examples=5, seed=3, only=["terms*", "inputs*"],
            counterexamples=tmp_path,
        )  # fmt: skip
    said = str(raised.value)
    assert "Doubled: terms equal the oracle does not hold in world single" in said
    assert "error 0.693 is" in said
    assert "smallest case: Case(rows=(2,)" in said
    (file,) = tmp_path.iterdir()
    assert f"run: python {file}" in said
    assert "seed 3" in said
    assert "inputs unchanged" not in said
    certificate = raised.value.certificate
    assert certificate is not None
    assert [one.verdict for one in certificate.properties] == ["falsified", "holds"]


def test_it_stops_at_the_first_finding_if_asked(tmp_path: Path) -> None:
    with pytest.raises(NotCertified) as raised:
        certify(
            Doubled, "clip", world="1", max_examples=2, only=["terms*", "inputs*"], fail_fast=True,
            counterexamples=tmp_path,
        )  # fmt: skip
    certificate = raised.value.certificate
    assert certificate is not None
    assert [one.verdict for one in certificate.properties] == ["falsified"]
    assert (
        "Doubled in world single: inputs unchanged: not run after the first finding"
        in certificate.not_verified
    )


def test_what_was_not_verified_is_no_certificate() -> None:
    with pytest.raises(NotCertified, match="was not verified in world single: out of time") as raised:
        certify(ClipLoss, "clip", world="1", only="terms*", max_time=1e-9)
    assert raised.value.certificate is not None
    assert raised.value.certificate.verdict == "incomplete"


def _local() -> type:
    class Local(ClipLoss):
        pass

    return Local


@pytest.mark.parametrize(
    ("target", "options", "named"),
    [
        (_local(), {}, "target: other processes .* got _local.<locals>.Local"),
        (lambda: ClipLoss(), {}, "target: other processes .* got <lambda>"),
        (type("Main", (), {"__module__": "__main__"}), {}, "target: other processes .* got Main of __main__"),
        (ClipLoss, {"contract": "clap"}, "contract: expected one of clip"),
        (ClipLoss, {"convention": "upstream"}, "convention: expected one of exact, open_clip, got upstream"),
        (
            ClipLoss,
            {"contract": "exchange", "convention": "open_clip"},
            "convention: the contract exchange has none: expected exact, got open_clip",
        ),
        (ClipLoss, {"dtypes": "float8"}, "dtypes: expected some of float64"),
        (ClipLoss, {"world": "two"}, "world: expected parts like"),
        (ClipLoss, {"max_examples": 0}, "max_examples: expected at least 1, got 0"),
        (ClipLoss, {"max_examples": "3"}, "max_examples: expected at least 1, got '3'"),
        (ClipLoss, {"world": ["1"]}, "world: expected text, as '1,sim:2-8', got list"),
        (ClipLoss, {"seed": 1.5}, "seed: expected 0 or more, got 1.5"),
        (ClipLoss, {"seed": -1}, "seed: expected 0 or more, got -1"),
        (ClipLoss, {"max_time": -1}, "max_time: expected more than 0 seconds, got -1"),
        (ClipLoss, {"only": "beauty"}, "only: expected some of terms equal the oracle"),
        (ClipLoss, {"only": "mean over*", "world": "1"}, "nothing to verify for ClipLoss in world 1"),
        (ClipLoss, {"config": {"slope": 3}}, "ClipLoss takes no slope"),
        ("tests.test_api:Nothing", {}, "tests.test_api:Nothing: there is no Nothing in tests.test_api"),
    ],
)
def test_a_wrong_argument_is_named(target: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        certify(target, **({"contract": "clip"} | options))


def test_a_target_is_a_class_a_function_or_a_name() -> None:
    with pytest.raises(TypeError, match=r"target: expected .* got ClipLoss ClipLoss\(\)"):
        certify(ClipLoss(), "clip")


@certification(ClipLoss, "clip", world="1", max_examples=3, only=["terms*", "inputs*"])
def test_decorated(check: Any) -> None:
    check()


@pytest.mark.xfail(raises=NotCertified, strict=True, reason="Doubled is wrong, and has to fail")
@certification(Doubled, "clip", world="1", max_examples=5, only="terms*")
def test_decorated_fails(check: Any) -> None:
    check()


def test_a_decorated_test_of_nothing_fails() -> None:
    check = certification("tests.test_api:Nothing", "clip", world="1", only="terms*").args[1][0]
    for _ in range(2):
        with pytest.raises(pytest.fail.Exception, match="there is no Nothing"):
            check()


def _check() -> Check:
    (check,) = plan({"mine": ask("verified_losses:ClipLoss", "clip")}, "1", only=["terms*"])
    return check


def test_pytest_is_told_what_did_not_run(tmp_path: Path) -> None:
    conclude(Finding(_check(), 0, "holds", (0.1,)), tmp_path)
    with pytest.raises(pytest.skip.Exception, match="no case"):
        conclude(Finding(_check(), 0, "skipped", reason="no case"), tmp_path)
    with pytest.raises(NotCertified, match="out of time"):
        conclude(Finding(_check(), 0, "skipped", reason="out of time", not_run=True), tmp_path)


@pytest.mark.parametrize(
    ("ask_by", "said"),
    [
        ("code", ['convention="open_clip"', "equal_rows=True"]),
        ("pytest", ["--certify-convention open_clip", "--certify-equal-rows"]),
        ("command", ["--convention open_clip", "--equal-rows"]),
    ],
)
def test_hints_name_arguments_as_they_are_given(
    ask_by: str, said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (("local_loss", False), ("gather_with_grad", False))
    (check,) = plan({"mine": ask("verified_losses:ClipLoss", "clip")}, "2", only=["gradients*"])
    wrong = Falsified("wrong", Place("gradient", "image_features", 0, index=(0, 0)))
    smallest = Example(Case(rows=(1, 2), options=flags))
    finding = Finding(check, 0, "falsified", reason="wrong", smallest=smallest, error=wrong)
    if ask_by == "command":
        terminal.show(Console(width=200), [Defect(finding)], Known())
        text = capsys.readouterr().out
    elif ask_by == "code":
        text = str(NotCertified([Defect(finding)], [], 0))
    else:
        found = SimpleNamespace(scope=SimpleNamespace(known=Known()), options=CertifyOptions())
        place, stash = SimpleNamespace(dir=tmp_path), {pytest_plugin.FOUND: found}
        config = SimpleNamespace(invocation_params=place, stash=stash)
        verifier = SimpleNamespace(verify=lambda check, until: finding, deadline=math.inf)
        session = SimpleNamespace(items=[])
        item: Any = SimpleNamespace(config=config, verifier=verifier, check=check, session=session)
        session.items.append(item)
        with pytest.raises(NotCertified) as raised:
            pytest_plugin.Property.runtest(item)
        text = str(raised.value)
    hints = [line.rpartition(": ")[2] for line in text.splitlines() if line.startswith("hint: ")]
    assert hints == said


def test_a_target_that_hung_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def hang(check: Check, *arguments: Any, **named: Any) -> Finding:
        ran.append(check)
        return Finding(check, 0, "falsified", hung=True)

    monkeypatch.setattr(certifier, "verify", hang)
    each = Certifier(max_examples=1)
    assert each.verify(_check()).verdict == "falsified"
    again = each.verify(_check())
    assert (again.verdict, again.not_run) == ("skipped", True)
    assert len(ran) == 1


def test_loading_the_plugin_imports_nothing_that_is_large() -> None:
    code = """
import sys
import verified_losses.properties.ask.pytest_plugin
large = {"torch", "numpy", "hypothesis", "rich"} & sys.modules.keys()
assert not large, large
"""
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)


def test_the_function_is_the_function_whatever_was_imported_before() -> None:
    code = """
from verified_losses.properties import certify
from verified_losses.properties.verify.certifier import verify
from verified_losses.properties import certify as again
import verified_losses.properties.ask.cli, verified_losses.properties
assert certify is again is verified_losses.properties.certify and certify.__name__ == "certify"
"""
    subprocess.run([sys.executable, "-c", code], timeout=240, check=True)
