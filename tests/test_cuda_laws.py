"""Over a stand-in for `torch.cuda` its laws catch what is planted for each, and accuse no right loss."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import pretend_cuda
from tests.defects import cuda
from tests.defects.index import CUDA, GRAPHS, MEMORY, STREAMS, WAITS, Planted
from tests.defects.report import try_once
from tests.pretend_cuda import Device
from verified_losses import ClipLoss
from verified_losses.properties import devices
from verified_losses.properties.cases import Case
from verified_losses.properties.contracts import contracts
from verified_losses.properties.examples import Example
from verified_losses.properties.laws import Bench, Falsified, Unanswered, laws
from verified_losses.properties.show.counterexample import render
from verified_losses.properties.subjects import SHIPPED, Subject
from verified_losses.properties.verify.certifier import Check, Finding, checks, verify
from verified_losses.properties.worlds import WorldError
from verified_losses.properties.worlds.single import SingleWorld
from verified_losses.properties.worlds.specs import WorldSpec, parse

LAWS = {law.name: law for law in laws() if law.needs == "cuda"}
PLANTED = [one for one in CUDA if one.wrong]
RIGHT = [one for one in CUDA if not one.wrong]
MODEL = "terms equal the oracle"
CASE = Case(
    rows=(5,), width=3, dtype="float32", pattern="unit", scale=2.0, bias=-0.5, vocabulary=4, length=3,
    pad_id=1, pads="inside", teacher_width=2, cotangents="drawn", seed=3,
)  # fmt: skip


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    with pretend_cuda.installed(monkeypatch) as installed:
        yield installed


def asked(device: Device, law: str, name: str, subject: Subject, case: Case = CASE) -> float:
    contract = contracts()[name]
    if "logit_bias" not in contract.differentiable:
        case = dataclasses.replace(case, bias=None)
    bench = Bench(contract, subject, SingleWorld(), SingleWorld())
    (found,) = [one for one in laws() if one.name == law]
    return pretend_cuda.placed(found, device).check(bench, bench.reference(case))


def subject_of(loss: type) -> Subject:
    return Subject(f"{__name__}:{loss.__name__}")


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_what_is_planted_is_caught(device: Device, planted: Planted) -> None:
    for law in planted.caught_by:
        with pytest.raises(Falsified):
            asked(device, law, planted.contract, planted.subject)


@pytest.mark.parametrize(
    "planted", [one for one in PLANTED if one.caught_by != (STREAMS,)], ids=lambda planted: planted.name
)
def test_a_law_of_values_sees_nothing_of_it(device: Device, planted: Planted) -> None:
    assert asked(device, MODEL, planted.contract, planted.subject) <= 1


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("label", ["clip", "coca", "distill", "siglip"])
def test_shipped_losses_hold(device: Device, law: str, label: str) -> None:
    name, subject = SHIPPED[label]
    options = (("clip_loss_weight", 1.0), ("caption_loss_weight", 2.0)) if label == "coca" else ()
    case = dataclasses.replace(CASE, options=(*options, *subject.options))
    if label == "coca" and law in (GRAPHS, WAITS):
        # its labels are checked, which reads them
        said = "cannot be captured" if law == GRAPHS else "does not state"
        with pytest.raises(Unanswered, match=said):
            asked(device, law, name, subject, case)
        case = dataclasses.replace(case, options=(("clip_loss_weight", 1.0), ("caption_loss_weight", 0.0)))
    assert asked(device, law, name, subject, case) <= 1


@pytest.mark.parametrize("cotangent_strides", ["contiguous", "expanded"])
@pytest.mark.parametrize("law", [STREAMS, MEMORY])
def test_gathers_hold(device: Device, law: str, cotangent_strides: str) -> None:
    case = dataclasses.replace(CASE, cotangent_strides=cotangent_strides)
    assert asked(device, law, *SHIPPED["gather"], case) <= 1


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("planted", RIGHT, ids=lambda planted: planted.name)
def test_right_losses_with_streams_and_buffers_of_their_own_hold(
    device: Device, law: str, planted: Planted
) -> None:
    if law in planted.skips:
        with pytest.raises(Unanswered):
            asked(device, law, planted.contract, planted.subject)
    else:
        assert asked(device, law, planted.contract, planted.subject) <= 1


@pytest.mark.parametrize(("name", "caught"), [("OwnStream", True), ("OwnStreamWaits", False)])
def test_the_catalogue_certifies_over_the_stand_in(name: str, caught: bool) -> None:
    """As `make defects` does, with cases that are drawn."""
    (planted,) = [one for one in CUDA if one.name == name]
    trial = try_once(planted, seed=0, worlds="1", max_examples=4)
    assert (trial.law, trial.accident) == (STREAMS if caught else "", False)


def test_a_loss_that_waits_says_so(device: Device) -> None:
    (planted,) = [one for one in RIGHT if one.skips]
    with pytest.raises(Unanswered, match="does not state"):
        asked(device, WAITS, planted.contract, planted.subject)


class RefusesCapture(ClipLoss):
    def forward(self, **named: Any) -> Any:
        if torch.cuda.is_current_stream_capturing():
            raise NotImplementedError("no graphs")
        return super().forward(**named)


class WaitsInCapture(ClipLoss):
    def forward(self, **named: Any) -> Any:
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()
        return super().forward(**named)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (cuda.Reads, "waits for the device: called a synchronizing CUDA operation"),
        (RefusesCapture, "NotImplementedError: no graphs"),
        (WaitsInCapture, "RuntimeError: operation not permitted when stream is capturing"),
    ],
)
def test_a_capture_that_is_refused_is_a_reason_and_no_defect(device: Device, loss: type, said: str) -> None:
    with pytest.raises(Unanswered, match=f"cannot be captured: {said}"):
        asked(device, GRAPHS, "clip", Subject(f"{loss.__module__}:{loss.__name__}"))
    assert device.graph is None
    assert device.current is device.default
    assert device.sync_mode == 0


class Fails(ClipLoss):
    def forward(self, **named: Any) -> Any:
        raise ValueError("broken")


@pytest.mark.parametrize("law", LAWS)
def test_a_loss_that_fails_is_no_refusal(device: Device, law: str) -> None:
    with pytest.raises(WorldError, match="broken"):
        asked(device, law, "clip", subject_of(Fails))


def test_scalars_of_the_cpu_are_moved(device: Device) -> None:
    case = dataclasses.replace(CASE, cpu_scalars=True)
    assert [LAWS[law].prepare(case).cpu_scalars for law in (STREAMS, GRAPHS, WAITS)] == [False] * 3


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_a_counterexample_quotes_the_act(device: Device, planted: Planted, tmp_path: Path) -> None:
    (law,), subject = planted.caught_by, planted.subject
    with pytest.raises(Falsified) as found:
        asked(device, law, "clip", subject)
    check = Check("Loss", contracts()["clip"], subject, LAWS[law], WorldSpec("single", (1,), "cuda:0"))
    example = Example(CASE).on("cuda:0", cpu_scalars=True)
    reason, error = str(found.value), found.value
    text = render(
        Finding(check, 0, "falsified", reason=reason, smallest=example, error=error), tmp_path / "one.py"
    )
    compile(text, "one.py", "exec")
    assert f"def {LAWS[law].act.__name__}(" in text
    assert "def recorded(" in text if law == GRAPHS else "recorded(" not in text
    assert "device=" in text


# Where they are asked.


def test_the_cpu_is_not_asked() -> None:
    planned = list(checks(SHIPPED, parse("1,2,sim:2-8")))
    assert {check.law.needs for check in planned} == {"", "cpu"}


def test_a_gpu_is_asked() -> None:
    worlds = [WorldSpec("single", (1,), "cuda:0"), WorldSpec("processes", (2,), "cuda:0/cuda:1")]
    planned = {(check.label, check.world.sizes[0], check.law.name) for check in checks(SHIPPED, worlds)}
    on = {law: {(label, size) for label, size, name in planned if name == law} for law in LAWS}
    one, losses = 1, {"clip", "coca", "coca_hidden", "distill", "linear_cross_entropy", "siglip"}
    assert on[GRAPHS] == on[WAITS] == {(label, one) for label in losses}
    exchanges = {(label, 2) for label in SHIPPED} | {(label, 1) for label in (*losses, "gather")}
    assert on[STREAMS] == on[MEMORY] == exchanges
    simulated = checks(SHIPPED, [WorldSpec("simulated", (2, 3), "cuda:0")])
    assert not [check for check in simulated if check.law.needs]


def test_why_no_case_says_anything_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    law = dataclasses.replace(LAWS[GRAPHS], needs="", check=_refuses)
    (check,) = [one for one in checks(SHIPPED, parse("1")) if one.label == "clip" and one.law.name == MODEL]
    finding = verify(dataclasses.replace(check, law=law), 3)
    assert (finding.verdict, finding.reason) == ("skipped", "it cannot be captured: because")
    assert not finding.not_run


def _refuses(bench: Bench, reference: Any) -> float:
    raise Unanswered("it cannot be captured: because")


# The stand-in itself.


def test_what_is_read_too_early_is_no_number(device: Device) -> None:
    with device:
        side = torch.cuda.Stream()
        one = torch.ones(3)
        with torch.cuda.stream(side):
            early = one + 1
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            two = one + 1
        unread = two * 1
        torch.cuda.synchronize()
        read = two * 1
    assert early.isnan().all()
    assert two.tolist() == read.tolist() == [2, 2, 2]
    assert unread.isnan().all()


def test_a_graph_does_it_again(device: Device) -> None:
    with device:
        given = torch.ones(3, requires_grad=True)
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = (given * given).sum()
            out.backward()
        given.detach().fill_(3)
        graph.replay()
    assert given.grad is not None
    assert (out.item(), given.grad.tolist()) == (27, [6, 6, 6])


def test_an_example_of_cuda_reads_back() -> None:
    example = Example(CASE).on("cuda:0", cpu_scalars=True)
    assert Example.from_json(example.to_json()) == example


# On a GPU.


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("label", SHIPPED)
def test_shipped_losses_hold_on_a_gpu(label: str, law: str) -> None:
    if why := devices.absent("cuda:0"):
        pytest.skip(why)
    planned = checks(SHIPPED, [WorldSpec("single", (1,), "cuda:0")])
    for check in planned:
        if (check.label, check.law.name) == (label, law):
            finding = verify(check, 30)
            refuses = label.startswith("coca") and law in (GRAPHS, WAITS)
            refuses |= label == "linear_cross_entropy" and law == WAITS  # a function states nothing
            assert finding.verdict == "holds" or (refuses and finding.verdict == "skipped"), finding.reason


@pytest.mark.parametrize("form", ["streamed", "triton"])
@pytest.mark.parametrize("label", ["clip", "coca", "distill", "siglip"])
def test_tiles_hold_on_a_gpu(label: str, form: str) -> None:
    if why := devices.absent("cuda:0"):
        pytest.skip(why)
    contract, shipped = SHIPPED[label]
    subject = dataclasses.replace(shipped, options=(*shipped.options, ("implementation", form)))
    for check in checks({label: (contract, subject)}, [WorldSpec("single", (1,), "cuda:0")]):
        finding = verify(check, 10)
        assert finding.verdict != "falsified", f"{check.law.name}: {finding.reason}"
