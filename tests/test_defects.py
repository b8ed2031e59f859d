"""Every law catches the defects planted for it, and every law has one; right variants are never accused.

Here each defect meets the laws expected to catch it alone; `make defects` certifies it as a whole.
"""

import contextlib
import dataclasses
import json
import os
import re
import signal
import sys
from pathlib import Path

import psutil
import pytest

from verified_losses.properties.contracts import contracts
from verified_losses.properties.laws import laws
from verified_losses.properties.laws.gradients import NO_DTYPE
from verified_losses.properties.laws.hostile import RAISES
from verified_losses.properties.laws.objects import LACKING
from verified_losses.properties.laws.ranks import FREEZES_ALIKE, NO_GROUP
from verified_losses.properties.laws.wrappers import NO_DTENSORS, NO_SCALE
from verified_losses.properties.show.certificate import stamp
from verified_losses.properties.verify.certifier import Certifier, Check, checks, verify
from verified_losses.properties.verify.limits import CONTIGUOUS_ALONE, OTHER_DTYPES
from verified_losses.properties.worlds.specs import parse

from .children import LIMIT_SECONDS, started, wait_until
from .defects import turns
from .defects.index import (
    BY_INDUCTOR,
    CUDA,
    DEFECTS,
    EXCEPTED,
    FRESH,
    FUNC,
    GRADS,
    HOROVOD,
    MAPPED,
    OWNED,
    PAIRS,
    RIGHT,
    SUBCLASSED,
    TERMS,
    TWICE,
    Planted,
)
from .defects.report import EXAMPLES, Result, Trial, counted, read_results, reason_if_falsified, report

LARGE = ("RowChunks", "OnlineSoftmax")
"""Right variants that meet large batches here; `make soak` takes all of them there."""
BUDGET = 4 * EXAMPLES
"""What the command draws differs with its seed: a defect that it catches now and then must be caught here."""
FEW = 3
WRAPPED = (FUNC, MAPPED, SUBCLASSED)
"""Of these a right variant may say that it does not support them."""
UNANSWERED = (*LACKING, RAISES, NO_GROUP, FREEZES_ALIKE, NO_DTENSORS, NO_SCALE)
"""The reasons for which a law may say nothing about a right variant."""
SEEDS = 6
"""Of a defect that the budget catches with some seeds alone, in one law and world."""


def _checks(planted: Planted, worlds: str) -> list[Check]:
    return list(checks({planted.id: (planted.contract, planted.subject)}, parse(worlds)))


@pytest.mark.parametrize("planted", [d for d in DEFECTS if not d.smallest], ids=lambda planted: planted.id)
def test_caught(planted: Planted) -> None:
    planned = {check.law.name: check for check in _checks(planted, planted.world)}
    for law in planted.caught_by:
        seeds = range(1 if planted.seeds == 1 else SEEDS)
        reasons = (reason_if_falsified(planned[law], BUDGET, seed) for seed in seeds)
        reason = next(filter(None, reasons), "")
        assert reason, f"{law} holds"
        assert planted.explains(reason), reason


@pytest.mark.parametrize("planted", [d for d in DEFECTS if d.smallest], ids=lambda planted: planted.id)
def test_caught_at_the_smallest_size(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    # however busy the machine is
    monkeypatch.setattr("verified_losses.properties.verify.certifier.SHRINK_SECONDS", 60.0)
    planned = {check.law.name: check for check in _checks(planted, planted.world)}
    for law in planted.caught_by:
        finding = verify(planned[law], BUDGET)
        assert finding.smallest is not None, f"{law} holds"
        assert planted.explains(finding.reason), finding.reason
        assert planted.is_smallest(finding.smallest.case), finding.counterexample


@pytest.mark.filterwarnings("ignore")  # what torch deprecates they may use
@pytest.mark.parametrize("planted", RIGHT, ids=lambda planted: planted.id)
def test_right_variants_are_never_accused(planted: Planted) -> None:
    planned = _checks(planted, "1,sim:2-8")
    if planted.asked:
        planned = [check for check in planned if check.law.name in planted.asked]
    else:
        planned = turns.in_turn(RIGHT.index(planted), planned)
    assert planned
    for check in planned:
        if check.law.name == PAIRS and planted.name not in LARGE:
            continue
        finding = verify(check, FEW)
        skips = check.law.name in planted.skips or finding.reason in UNANSWERED
        expected = "skipped" if skips else "holds"
        allowed = (expected, "limit") if check.law.name in WRAPPED else (expected,)
        assert finding.verdict in allowed, f"{check.law.name}: {finding.reason}\n{finding.counterexample}"


def _right(name: str, law: str, world: str = "1", **changed: object) -> Check:
    (planted,) = [one for one in RIGHT if one.name == name]
    planted = dataclasses.replace(planted, **changed)  # type: ignore[arg-type]
    (check,) = [one for one in _checks(planted, world) if one.law.name == law]
    return check


@pytest.mark.parametrize("seed", range(3))
def test_a_call_that_the_contract_calls_undefined_is_never_made(seed: int) -> None:
    finding = verify(_right("RefusesEmptyMean", FRESH), 25, seed)
    assert finding.verdict == "holds", finding.reason


@pytest.mark.parametrize("name", ["OwnsTemperature", "OwnsInSingle"])
def test_what_a_right_loss_owns_is_looked_at_and_not_accused(name: str) -> None:
    finding = verify(_right(name, OWNED), 100)
    assert (finding.verdict, finding.examples) == ("holds", 20), finding.reason


def test_second_derivatives_are_asked_of_the_dtypes_that_are_asked_for() -> None:
    halves = _right("SinglePrecision", TWICE, dtypes=("bfloat16", "float16"))
    finding = verify(halves, 10)
    assert (finding.verdict, finding.reason) == ("skipped", NO_DTYPE)
    finding = verify(_right("SinglePrecision", TWICE), 10)
    assert {case.dtype for case in finding.cases} == {"float32"}
    assert finding.verdict == "holds", finding.reason


CONTIGUOUS_INPUTS = ("ContiguousOnly", "CaptionsContiguousOnly", "contiguous_only")
"""Defects that raise for inputs that are not contiguous, and have no other."""


@pytest.mark.parametrize(
    "planted", [one for one in DEFECTS if one.name in CONTIGUOUS_INPUTS], ids=lambda planted: planted.id
)
def test_what_takes_contiguous_inputs_alone_has_a_limit_where_it_is_not_strict(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verified_losses.properties.verify.certifier.SHRINK_SECONDS", 1.0)
    lax = dataclasses.replace(planted, strict=False)
    planned = {check.law.name: check for check in _checks(lax, lax.world)}
    certifier = Certifier(25)
    found = certifier.verify(planned[TERMS])
    assert (found.verdict, found.limit) == ("limit", "strided inputs"), found.reason
    later = certifier.verify(planned[GRADS])
    assert (later.verdict, later.reason) == ("holds", CONTIGUOUS_ALONE)


def test_a_softplus_that_is_linear_beyond_20_has_a_limit_where_it_is_not_strict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("verified_losses.properties.verify.certifier.SHRINK_SECONDS", 1.0)
    (planted,) = [one for one in DEFECTS if one.name == "SoftplusThreshold"]
    planned = {check.law.name: check for check in _checks(dataclasses.replace(planted, strict=False), "1")}
    certifier = Certifier(EXAMPLES, seed=1)
    found = certifier.verify(planned[TERMS])
    assert (found.verdict, found.limit) == ("limit", "rounding in float64"), found.reason
    later = certifier.verify(planned[GRADS])
    assert (later.verdict, later.reason) == ("holds", OTHER_DTYPES.format("float64"))


def test_every_law_catches_a_defect() -> None:
    caught = {law for planted in [*DEFECTS, *CUDA, *BY_INDUCTOR] for law in planted.caught_by}
    assert caught == {law.name for law in laws()}


def test_ids_are_unique() -> None:
    ids = [planted.id for planted in [*DEFECTS, *CUDA, *BY_INDUCTOR, *RIGHT]]
    assert len(ids) == len(set(ids))
    assert len(DEFECTS) >= 120
    assert len(RIGHT) >= 30


def test_every_contract_has_defects_and_right_variants() -> None:
    assert {planted.contract for planted in DEFECTS} == set(contracts())
    assert {planted.contract for planted in RIGHT} == set(contracts())


FINDINGS = Path(__file__).parents[1] / "peers" / "FINDINGS.md"


def _is_found(source: str) -> bool:
    name, comma, heading = source.partition("peers/FINDINGS.md, ")
    if comma and not name:
        return re.search(rf"^## .*\. {re.escape(heading)}$", FINDINGS.read_text(), re.MULTILINE) is not None
    return re.fullmatch(r"https://[\w.-]+/\S+[^\s;]", source) is not None


@pytest.mark.parametrize(
    "planted", [d for d in [*DEFECTS, *HOROVOD] if d.source], ids=lambda planted: planted.id
)
def test_every_source_is_a_link_or_a_heading(planted: Planted) -> None:
    assert all(_is_found(source) for source in planted.source.split("; ")), planted.source


@pytest.mark.parametrize(
    "source", ["", "open_clip", "https://github.com", "peers/FINDINGS.md", "peers/FINDINGS.md, no loss"]
)
def test_what_names_no_place_is_no_source(source: str) -> None:
    assert not _is_found(source)


@pytest.mark.parametrize(("wrong", "source", "reason"), EXCEPTED)
def test_what_is_not_planted_has_a_source_and_a_reason(wrong: str, source: str, reason: str) -> None:
    assert wrong
    assert reason
    assert all(map(_is_found, source.split("; "))), source


def test_a_report_that_is_resumed_keeps_what_is_of_the_same_sources(tmp_path: Path) -> None:
    out, label = tmp_path / "defects.json", "right:LogSumExp"
    accused = Result(label, [Trial(7, "a law")], [])
    record = {"stamp": stamp() | {"date": "earlier"}, "seeds": [7], "results": [dataclasses.asdict(accused)]}
    out.write_text(json.dumps(record))
    assert report(only=[label], seed=[7], resume=True, out=out) == 1  # without another trial
    kept = json.loads(out.read_text())
    assert read_results(kept, stamp()) == {label: accused}
    assert read_results(kept, stamp() | {"properties": "others"}) == {}


def test_of_all_that_is_planted_nothing_is_left_untried() -> None:
    planted = [*DEFECTS, *CUDA, *RIGHT]
    counts = counted(planted, {one.id: Result(one.id, [Trial(0, "a law")], []) for one in planted})
    assert counts["tried"] == counts["caught"] == counts["defects"]
    assert counts["right_tried"] == counts["accused"] == counts["right"]
    assert counts["defects"] + counts["right"] == len(planted)


def test_a_report_that_is_terminated_leaves_no_process(tmp_path: Path) -> None:
    endless = ["--only", "right:LogSumExp", "--max-examples", "1000000", "--world", "1"]
    out = str(tmp_path / "defects.json")
    command = [sys.executable, "-m", "tests.defects.report", *endless, "--out", out]
    with started(command) as running:
        family: list[psutil.Process] = []

        def certifies() -> bool:
            family[:] = psutil.Process(running.pid).children(recursive=True)
            # the rank that the loss runs in has a session of its own, and descends from a worker
            with contextlib.suppress(ProcessLookupError):
                return any(os.getsid(one.pid) == one.pid for one in family)
            return False

        wait_until(certifies, running)
        running.terminate()
        assert running.wait(LIMIT_SECONDS) == -signal.SIGTERM
        _, alive = psutil.wait_procs(family, LIMIT_SECONDS)
        try:
            assert not alive
        finally:
            for one in alive:
                one.kill()
