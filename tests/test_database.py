"""The cache of failing cases: what failed before is tried first, and nothing depends on it."""

import importlib.util
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis.database import (
    BackgroundWriteDatabase,
    ExampleDatabase,
    InMemoryExampleDatabase,
    MultiplexedDatabase,
)

from verified_losses.properties.ask import fuzz_cli
from verified_losses.properties.ask.cli import main
from verified_losses.properties.examples import Example
from verified_losses.properties.fuzz import unit as fuzzing
from verified_losses.properties.fuzz.lines import Done, Find, Unit
from verified_losses.properties.fuzz.workers import Event, Job, Processes, Scope, Told
from verified_losses.properties.laws import Falsified
from verified_losses.properties.subjects import SHIPPED
from verified_losses.properties.verify import certifier, database
from verified_losses.properties.verify.arguments import Unusable, ask, check_database, without_password
from verified_losses.properties.verify.certifier import Check, verify
from verified_losses.properties.verify.database import Forgiving, of_check, open_database
from verified_losses.properties.verify.plan import plan

from . import services
from .children import LIMIT_SECONDS

PACKAGE = importlib.util.find_spec("redis")
packaged = pytest.mark.skipif(PACKAGE is None, reason="needs redis: pip install 'verified-losses[redis]'")
cluster = pytest.mark.skipif("CLUSTER" not in os.environ, reason="`make cluster` runs it")
served = pytest.mark.skipif(
    bool(services.missing("redis-server")), reason=services.missing("redis-server") or "it is installed"
)


@pytest.fixture
def check() -> Check:
    (found,) = plan({"clip": SHIPPED["clip"]}, "1", only=["terms equal the oracle"])
    return found


def _wide(monkeypatch: pytest.MonkeyPatch, limit: int) -> list[Example]:
    """Let a check fail on wide cases; return the examples that it is run on."""
    ran: list[Example] = []

    def falsify(check: Check, example: Example) -> float:
        ran.append(example)
        if example.case.width > limit:
            raise Falsified("wide")
        return 0.0

    monkeypatch.setattr(certifier, "falsify", falsify)
    return ran


def test_an_empty_database_changes_no_case(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    _wide(monkeypatch, 10**9)
    kept = verify(check, 40, 1, database=InMemoryExampleDatabase())
    assert kept.cases == verify(check, 40, 1).cases


def test_what_failed_before_is_tried_first(
    check: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []
    kept = of_check(open_database(str(tmp_path / "kept"), said.append), check)
    ran = _wide(monkeypatch, 7)
    smallest = verify(check, 40, 1, database=kept).smallest
    assert smallest is not None
    assert len(ran) > 1
    ran.clear()
    # in another run, with another seed, under Hypothesis' profile of CI, which refuses databases
    again = of_check(open_database(str(tmp_path / "kept"), said.append), check)
    monkeypatch.setenv("CI", "1")
    assert verify(check, 40, 2, database=again).smallest == smallest
    assert ran[0] == smallest
    ran.clear()
    _wide(monkeypatch, 10**9)  # it is repaired
    assert verify(check, 40, 3, database=again).verdict == "holds"
    fixed = _wide(monkeypatch, 10**9)
    assert verify(check, 40, 3, database=again).verdict == "holds"
    assert fixed[0] != smallest, "what does not fail any more is forgotten"
    assert said == []


def test_checks_share_no_cases() -> None:
    planned = plan({label: SHIPPED[label] for label in ("clip", "siglip")}, "1,sim:2-4")
    shared = InMemoryExampleDatabase()
    for number, check in enumerate(planned):
        of_check(shared, check).save(b"key", b"%d" % number)
    assert [list(of_check(shared, check).fetch(b"key")) for check in planned] == [
        [b"%d" % number] for number in range(len(planned))
    ]


def _fuzzed(check: Check, seed: int, known: list[str], kept: ExampleDatabase) -> tuple[Done, list[Find]]:
    """Run a unit of a fuzz run; return what came of it and what is found."""
    finds: list[Find] = []
    unit = Unit(0, "clip", check.law.name, "single", seed, seed, 40)
    tell = lambda find, code: finds.append(find)  # noqa: E731
    done = fuzzing.run(unit, check, known, [], math.inf, Path("finds"), tell, of_check(kept, check))
    return done, finds


def test_fuzz_tries_first_what_failed_and_keeps_what_is_known(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzzing, "render", lambda finding, path: "")
    kept = InMemoryExampleDatabase()
    ran = _wide(monkeypatch, 7)
    smallest = verify(check, 40, 1, database=of_check(kept, check)).smallest
    ran.clear()
    _, finds = _fuzzed(check, 2, [], kept)
    assert ran[0] == smallest
    (kind,) = {find.fingerprint for find in finds}
    for seed in (3, 4):
        ran.clear()
        done, finds = _fuzzed(check, seed, [kind], kept)
        assert ran[0] == smallest, "a failure that is known is no reason to forget the case"
        assert finds == []
        assert done.finds[kind] >= 1
    _wide(monkeypatch, 10**9)  # it is repaired
    _fuzzed(check, 5, [kind], kept)
    ran = _wide(monkeypatch, 10**9)
    _fuzzed(check, 6, [kind], kept)
    assert ran[0] != smallest


def test_processes_of_a_fuzz_run_keep_what_failed(tmp_path: Path) -> None:
    subjects = {"it": ask("tests.defects.clip:OnlyImageToText", "clip")}
    scope = Scope(subjects, "1", ("terms equal the oracle",))
    unit = Unit(0, "it", "terms equal the oracle", "single", 0, 0, 3)
    until = time.monotonic() + LIMIT_SECONDS
    workers = Processes(1, scope, tmp_path, str(tmp_path / "kept"))
    told: list[Event] = []
    try:
        workers.start(0, Job(unit, [], [], until))
        while not workers.idle() and time.monotonic() < until:
            told += workers.wait(1.0)
    finally:
        workers.close()
    assert [one.find.fingerprint for one in told if isinstance(one, Told) and one.find], told
    assert [file for file in (tmp_path / "kept").rglob("*") if file.is_file()]


class Broken(ExampleDatabase):
    """Fails, and counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def fetch(self, key: bytes) -> Iterator[bytes]:
        self.asked += 1
        yield b"value"
        raise ConnectionError("gone")

    def save(self, key: bytes, value: bytes) -> None:
        self.asked += 1
        raise TimeoutError("gone")

    delete = save


def test_a_database_that_fails_is_left_alone(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    broken = Broken()
    ran = _wide(monkeypatch, 7)
    background = BackgroundWriteDatabase(Forgiving(broken, "the cache", said.append))
    kept = of_check(MultiplexedDatabase(InMemoryExampleDatabase(), background), check)
    finding = verify(check, 40, 1, database=kept)
    assert finding.verdict == "falsified"
    assert finding.smallest in ran
    assert said == ["the cache: not used any more: ConnectionError: gone"]
    assert broken.asked == 1


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "expected a folder or redis://HOST/DB, got ''"),
        ("http://host/0", "got 'http://host/0'"),
        ("redis://", "expected a folder, redis://HOST/DB"),
        ("redis:///0", "expected a folder, redis://HOST/DB"),
        ("redis://host/one", "DB being a number"),
        ("redis://host:no/0", "expected a folder, redis://HOST/DB"),
        ("redis://user:secret@host/one", "got 'redis://***@host/one'"),
    ],
)
def test_a_wrong_database_is_named(text: str, named: str) -> None:
    with pytest.raises(Unusable) as refused:
        check_database(text)
    assert named in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_folder_that_cannot_be_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("certify", *fuzz_cli.fuzz.name):
        with pytest.raises(SystemExit, match="2"):
            main([command, "--database", "pyproject.toml/x"])
        said = "database: cannot write into pyproject.toml/x"
        assert said in capsys.readouterr().err


def test_no_password_is_recorded() -> None:
    said = "certify --database redis://user:secret@host/0 --database=rediss://:p@host:1/2 x:y"
    assert (
        without_password(said) == "certify --database redis://***@host/0 --database=rediss://***@host:1/2 x:y"
    )


@packaged
def test_a_redis_that_refuses_costs_the_cache_alone(
    check: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(database, "LOCAL", tmp_path)
    said: list[str] = []
    _wide(monkeypatch, 7)
    address = f"redis://:secret@{services.LOCALHOST}:{services.free_port()}/0"
    begun = time.monotonic()
    opened = open_database(address, said.append)
    assert verify(check, 40, 1, database=of_check(opened, check)).verdict == "falsified"
    assert time.monotonic() - begun < 10 * database.PATIENCE_SECONDS
    (line,) = said
    assert "ConnectionError" in line
    assert "secret" not in line
    assert any(tmp_path.iterdir()), "the local folder has it"


@packaged
@cluster
@served
def test_redis_shares_what_failed(check: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []
    port = services.free_port()
    address = f"redis://{services.LOCALHOST}:{port}/3"
    ran = _wide(monkeypatch, 7)
    with services.redis(tmp_path, port) as server:
        monkeypatch.setattr(database, "LOCAL", tmp_path / "one")
        smallest = verify(
            check, 40, 1, database=of_check(open_database(address, said.append), check)
        ).smallest
        ran.clear()
        monkeypatch.setattr(database, "LOCAL", tmp_path / "another machine")
        other = of_check(open_database(address, said.append), check)
        assert verify(check, 40, 2, database=other).smallest == smallest
        assert ran[0] == smallest

        # it hangs, then goes away, in the middle of a run
        begun = time.monotonic()
        threading.Timer(0.2, server.kill).start()
        for seed in range(100):
            assert verify(check, 40, seed, database=other).verdict == "falsified"
            if time.monotonic() > begun + 1.0:
                break
    assert time.monotonic() - begun < 20
    (line,) = said
    assert line.startswith(f"database {address}: not used any more: ")


@packaged
@cluster
@served
def test_a_redis_that_hangs_is_not_waited_for(
    check: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import signal

    monkeypatch.setattr(database, "LOCAL", tmp_path / "local")
    said: list[str] = []
    port = services.free_port()
    _wide(monkeypatch, 7)
    with services.redis(tmp_path, port) as server:
        opened = open_database(f"redis://{services.LOCALHOST}:{port}/0", said.append)
        server.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        for seed in range(5):
            assert verify(check, 40, seed, database=of_check(opened, check)).verdict == "falsified"
        assert time.monotonic() - begun < 10 * database.PATIENCE_SECONDS
        server.send_signal(signal.SIGCONT)
    assert len(said) == 1
