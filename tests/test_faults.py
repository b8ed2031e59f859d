"""Faults of one rank in real processes: how losses take them, and that what takes them badly is noticed."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from verified_losses.properties.ask import run
from verified_losses.properties.ask.cli import main
from verified_losses.properties.examples import Example
from verified_losses.properties.faults import KINDS, Call, Fault, Kind, Phase, Result, campaign, judge, table
from verified_losses.properties.faults.campaign import inject, leftovers
from verified_losses.properties.faults.draw import drawn
from verified_losses.properties.subjects import SHIPPED, Subject

SIZES = (2, 3, 4)
PLANTED = "tests.defects.faults"
MANY, PARTS = 50, 10


@pytest.mark.processes
@pytest.mark.parametrize("part", range(PARTS))
def test_the_losses_name_the_faulty_rank(part: int) -> None:
    faults = [drawn(0, number, SHIPPED, SIZES) for number in range(part, MANY, PARTS)]
    results = [inject(fault) for fault in faults]
    assert {str(one): one.not_run for one in results if one.not_run} == {}
    assert {str(one): why for one in results if (why := table.wrong(one))} == {}
    assert {one.verdict for one in results} <= {"named", "unaffected"}


def test_many_faults_are_of_every_kind_moment_and_loss() -> None:
    faults = [drawn(0, number, SHIPPED, SIZES) for number in range(MANY)]
    assert {one.kind for one in faults} == set(KINDS)
    assert {one.phase for one in faults} == {"before", "forward", "backward", "after"}
    assert {one.world_size for one in faults} == set(SIZES)
    assert {one.label for one in faults} == SHIPPED.keys() - {"linear_cross_entropy"}
    assert all(one.rank < one.world_size for one in faults)


def test_a_fault_is_drawn_of_numbers_and_is_the_same_from_its_file() -> None:
    for number in range(20):
        fault = drawn(7, number, SHIPPED, SIZES)
        assert fault == drawn(7, number, SHIPPED, SIZES)
        assert fault == msgspec.json.decode(msgspec.json.encode(fault), type=Fault)
        assert fault != drawn(8, number, SHIPPED, SIZES)


def _fault(
    name: str, kind: Kind, phase: Phase = "before", at: int = 0, strict: bool = False, **options: Any
) -> Fault:
    """A fault of rank 1 of two in a planted loss."""
    subject = Subject(f"{PLANTED}:{name}", bias=False, strict=strict)
    flags = {"convention": "exact", "local_loss": False, "gather_with_grad": False, "cache_labels": False}
    base = next(one for one in _clips() if one.call.example.case.width > 1)
    chosen = tuple((flags | options).items())
    dtype = {"dtype": "float32"} if kind == "another dtype" else {}

    def call(seed: int) -> Call:
        case = replace(
            base.call.example.case, rows=(3, 3), pattern="unit", scale=2.0, bias=None, scalar_shape=(),
            options=chosen, frozen=(), strides="contiguous", cotangents="ones", seed=seed, **dtype,
        )  # fmt: skip
        return Call("clip", subject, Example(case))

    return Fault(
        kind=kind, rank=1, phase=phase, at=at, label=name, call=call(1), before=call(2),
        dtype="float64" if kind == "another dtype" else "",
    )  # fmt: skip


def _clips() -> Iterator[Fault]:
    clip = {"clip": SHIPPED["clip"]}
    return (drawn(0, number, clip, (2,)) for number in range(100))


@pytest.mark.processes
@pytest.mark.parametrize(
    ("fault", "verdict", "said"),
    [
        (_fault("SwallowsForward", "killed", "forward", 1), "silent", "contrastive_loss"),
        (_fault("ReturnsTheLast", "raises"), "silent", "contrastive_loss"),
        (_fault("SwallowsBackward", "os._exit", "backward", gather_with_grad=True), "silent", "gradient of"),
        (_fault("Aborts", "sys.exit"), "abort", "SIGABRT"),
        (_fault("WaitsForEver", "killed", "forward"), "hang", "no answer in"),
        (_fault("PadsWidth", "another shape", strict=True), "silent", "contrastive_loss"),
    ],
    ids=lambda value: value.label if isinstance(value, Fault) else "",
)
def test_what_takes_a_fault_badly_is_noticed(
    fault: Fault, verdict: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if verdict == "hang":
        monkeypatch.setattr(campaign, "HANG_SECONDS", 3.0)
    result = inject(fault)
    assert not result.not_run
    assert result.verdict == verdict, result
    assert table.wrong(result).startswith(f"{verdict} on rank 0: ")
    assert said in table.wrong(result)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        (_fault("Clip", "killed", "forward", 2), "generic"),
        (_fault("Clip", "stopped", "backward", gather_with_grad=True), "generic"),
        (_fault("Clip", "raises", "backward"), "unaffected"),  # which sends nothing
        (_fault("Clip", "os._exit", "after", gather_with_grad=True), "unaffected"),
        (_fault("Names", "sys.exit", "forward"), "named"),
        (_fault("GathersWide", "another dtype", strict=True), "unaffected"),
        (_fault("Draws", "raises", "after"), "unaffected"),
        (_fault("PadsWidth", "another shape"), "silent"),
    ],
    ids=lambda value: f"{value.label}-{value.kind}" if isinstance(value, Fault) else "",
)
def test_what_takes_a_fault_well_is_not_accused(fault: Fault, verdict: str) -> None:
    result = inject(fault)
    assert not result.not_run
    assert result.verdict == verdict, result
    assert table.wrong(result) == ""


@pytest.mark.parametrize(
    ("kind", "said", "named"),
    [
        ("killed", "RuntimeError: sum among 3 ranks failed: rank 1 died, left or stopped", True),
        ("killed", "RuntimeError: sum among 3 ranks failed: ranks 0, 1 died, left or stopped", True),
        ("killed", "RuntimeError: sum among 3 ranks failed: rank 0 died, left or stopped", False),
        ("killed", "RuntimeError: Connection closed by peer [127.0.0.1]:1", False),
        ("killed", '  File "x.py", line 1\n    raise X("rank 1 died")\nRuntimeError: closed', False),
        ("another dtype", "ValueError: ranks disagree: rank 0 calls a float32; rank 1 calls a half", True),
        ("another shape", "ValueError: rank 1 is wrong", False),
    ],
)
def test_an_exception_names_rank_and_cause(kind: Kind, said: str, named: bool) -> None:
    assert judge.names(_fault("Clip", kind), said) is named


def test_what_is_left_behind_is_noticed(tmp_path: Path) -> None:
    listen = "import socket; s = socket.create_server(('127.0.0.1', 0))"
    script = f"{listen}; print(s.getsockname()[1], flush=True); input()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        (tmp_path / "store").touch()
        left = leftovers([child.pid], tmp_path)
        child.kill()
    assert [one.split(",")[0] for one in left] == [
        f"process {child.pid}", f"port {port} of process {child.pid}", "file store"
    ]  # fmt: skip
    with socket.socket() as again:
        assert again.connect_ex(("127.0.0.1", port))


def _results(*verdicts: str) -> list[Result]:
    from verified_losses.properties.faults import RankResult

    fault = _fault("Clip", "killed")
    return [Result(fault, (RankResult(0, one, "so it is"),)) for one in verdicts]  # type: ignore[arg-type]


def test_the_table_counts_verdicts() -> None:
    results = [
        *_results("named", "generic", "silent", "hang"),
        Result(_fault("Clip", "stopped"), not_run="x"),
    ]
    rows = table.kinds(results)
    assert [name for name, _ in rows] == ["killed", "stopped", "all"]
    assert table.markdown(rows).splitlines()[-1] == "| all | 4 | 1 | 1 | 0 | 1 | 1 | 0 |"
    assert any("not injected" in line for line in table.left_over(results, 5))
    assert any("1 of 6 faults" in line for line in table.left_over(results, 6))


def test_a_shipped_loss_must_name_the_rank() -> None:
    fault = drawn(0, 0, SHIPPED, SIZES)
    (generic,) = _results("generic")
    assert not table.wrong(generic)
    assert table.wrong(Result(fault, generic.ranks)) == "generic on rank 0: so it is"


@pytest.mark.processes
def test_the_command_injects_and_injects_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(run, "LOGGED", 0.0)
    asked = ["certify", f"{PLANTED}:SwallowsForward", "--as", "clip", "--world", "proc:2"]
    with pytest.raises(SystemExit, match="1"):
        main([*asked, "--faults", "4", "--fail-fast"])
    printed = capsys.readouterr().out
    assert "FALSIFIED SwallowsForward: rank " in printed
    assert "injected" in printed
    assert "1 of 4 faults in 0 min" in printed
    results = msgspec.json.decode(Path("build/faults.json").read_bytes(), type=list[Result])
    assert table.wrong(results[-1])
    (file,) = Path("build/counterexamples").glob("fault-SwallowsForward-*.json")
    with pytest.raises(SystemExit, match="1"):
        main(["certify", "--faults", str(file)])
    assert "1 of 1 fault falsified" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--faults", "0"], "--faults: expected at least 1, got 0"),
        (["--faults", "some"], "--faults: expected a number, or the file of a fault, got 'some'"),
        (["--faults", "2", "--only", "x"], "--only: says nothing of faults"),
        (["--faults", "2", "--world", "sim:2"], "--world: faults are those of real processes"),
        (["--faults", "pyproject.toml"], "--faults: pyproject.toml holds no fault"),
        (["--loss", "linear_cross_entropy", "--faults", "1"], "--faults: no rank of linear_cross_entropy"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("pyproject.toml").write_text("[project]\n")
    with pytest.raises(SystemExit, match="2"):
        main(["certify", *arguments])
    assert f"error {said}" in capsys.readouterr().err
