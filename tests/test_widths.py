"""The widths of features that a target states."""

from unittest import mock

import pytest
from hypothesis import Phase, given, settings

from verified_losses.properties.ask.cli import main
from verified_losses.properties.contracts import contracts
from verified_losses.properties.examples import Example
from verified_losses.properties.laws import Law, laws
from verified_losses.properties.show.forms import described
from verified_losses.properties.subjects import Subject
from verified_losses.properties.verify.arguments import Unusable, ask, read_widths
from verified_losses.properties.verify.certifier import checks, verify
from verified_losses.properties.verify.plan import inspection
from verified_losses.properties.worlds import server
from verified_losses.properties.worlds.specs import parse

pytestmark = pytest.mark.usefixtures("in_this_process")
OF_CLIP = [law for law in laws() if law.fits(contracts()["clip"], 1)]


@pytest.mark.parametrize("law", OF_CLIP, ids=lambda law: law.name)
def test_no_other_width_is_drawn(law: Law) -> None:
    drawn: set[int] = set()
    contract, subject = contracts()["clip"], Subject("a:B", widths=(16, 32))

    @given(law.draw(contract, subject, 1))
    @settings(max_examples=10, database=None, deadline=None, phases=[Phase.generate])
    def collect(example: Example) -> None:
        cases = [example.case, *(step.case for step in example.steps)]
        drawn.update(law.prepare(case).width for case in cases)

    collect()
    assert drawn <= {16, 32}
    assert 16 in drawn


def test_a_loss_that_takes_some_widths_alone_holds() -> None:
    target = "tests.uncallable:PowersOfTwo"
    with pytest.raises(Unusable, match="every call raised"):
        inspection(ask(target, "clip")[1], "clip")
    subject, matches = inspection(ask(target, "clip", widths=read_widths("16, 32"))[1], "clip")
    assert matches
    assert "takes features of width 16, 32" in described("clip", subject)
    for check in checks({"it": ("clip", subject)}, parse("1")):
        if check.law.name in ("terms equal the oracle", "twice differentiable", "used equals fresh"):
            assert verify(check, 5).verdict == "holds"


def test_the_command_that_an_inspection_prints_repeats_what_was_stated(
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = "tests.uncallable:PowersOfTwo"
    # a fork server of its own takes seconds
    with pytest.raises(SystemExit) as ended, mock.patch.object(server, "start"):
        main(["inspect", target, "--widths", "16,32", "--features", "raw"])
    assert ended.value.code == 0
    assert f"verified-losses certify {target} --as clip --features=raw --widths=16,32\n" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("contract", "widths", "said"),
    [
        ("clip", "16,x", "expected whole numbers above 0, as 16,32, got '16,x'"),
        ("clip", "0", "expected whole numbers above 0, as 16,32, got '0'"),
        ("clip", "16,", "expected whole numbers above 0"),
        ("cross_entropy", "16", "expected nothing for cross_entropy, got 16"),
    ],
)
def test_widths_that_are_none_are_refused(contract: str, widths: str, said: str) -> None:
    with pytest.raises(Unusable) as refused:
        ask("a:b", contract, widths=read_widths(widths))
    assert refused.value.argument == "widths"
    assert said in refused.value.problem
