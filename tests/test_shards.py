"""Shards: how they are named, and what each takes."""

import pytest

from verified_losses.properties.subjects import SHIPPED
from verified_losses.properties.verify import certifier
from verified_losses.properties.verify.arguments import Unusable
from verified_losses.properties.verify.certifier import verify
from verified_losses.properties.verify.plan import own_checks, plan
from verified_losses.properties.verify.shards import Shard, read_shard


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_unit_is_taken_by_one_shard(count: int) -> None:
    shards = [Shard(index, count) for index in range(count)]
    assert all(sum(shard.takes(number) for shard in shards) == 1 for number in range(50))


@pytest.mark.parametrize(
    ("text", "environ", "shard"),
    [
        (None, {}, Shard()),
        ("1/1", {}, Shard()),
        ("1/4", {}, Shard(0, 4)),
        (" 4/4 ", {}, Shard(3, 4)),
        (None, {"VERIFIED_LOSSES_SHARD": "2/3"}, Shard(1, 3)),
        (None, {"VERIFIED_LOSSES_SHARD": ""}, Shard()),
        (None, {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "4"}, Shard(2, 4)),
        (
            None,
            {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"},
            Shard(3, 4),
        ),
        (
            None,
            {
                "SLURM_ARRAY_TASK_ID": "5",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_MAX": "7",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            Shard(2, 4),
        ),
        (
            "1/2",
            {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "4", "VERIFIED_LOSSES_SHARD": "no"},
            Shard(0, 2),
        ),
        (
            None,
            {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "2", "VERIFIED_LOSSES_SHARD": "1/2"},
            Shard(0, 2),
        ),
    ],
)
def test_a_shard_is_read(text: str | None, environ: dict[str, str], shard: Shard) -> None:
    assert read_shard(text, environ) == shard


@pytest.mark.parametrize("text", ["", "0/2", "3/2", "1/0", "0/0", "-1/2", "1", "1.0/2", "²/2"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(Unusable, match="shard: expected i/n, with i from 1 to n") as refused:
        read_shard(text, {})
    assert repr(text) in str(refused.value)
    if text:
        with pytest.raises(Unusable, match="VERIFIED_LOSSES_SHARD: expected"):
            read_shard(None, {"VERIFIED_LOSSES_SHARD": text})


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"ID": "1"}, "whole numbers"),
        ({"ID": "x", "COUNT": "2"}, "whole numbers"),
        ({"ID": "1", "COUNT": "2", "STEP": "0"}, "equal steps"),
        ({"ID": "2", "COUNT": "2"}, "equal steps"),
        # --array 1,3,7: no task may run as if it were of another array
        ({"ID": "1", "COUNT": "3", "MIN": "1", "MAX": "7"}, "equal steps"),
        ({"ID": "2", "COUNT": "4", "MIN": "1", "MAX": "7", "STEP": "2"}, "equal steps"),
    ],
)
def test_a_job_array_that_cannot_be_split_is_refused(environ: dict[str, str], said: str) -> None:
    with pytest.raises(Unusable, match=said):
        read_shard(None, {f"SLURM_ARRAY_TASK_{name}": value for name, value in environ.items()})


def test_two_names_that_differ_are_refused() -> None:
    environ = {
        "SLURM_ARRAY_TASK_ID": "0",
        "SLURM_ARRAY_TASK_COUNT": "2",
        "VERIFIED_LOSSES_SHARD": "2/2",
    }
    with pytest.raises(Unusable, match="VERIFIED_LOSSES_SHARD says 2/2, Slurm's job array says 1/2"):
        read_shard(None, environ)


def test_shards_share_every_law_and_overlap_nowhere() -> None:
    planned = plan({label: SHIPPED[label] for label in ("clip", "exchange", "siglip")}, "1,sim:2-4,proc:2")
    for count in (1, 2, 3, 5):
        parts = [own_checks(planned, Shard(index, count)) for index in range(count)]
        assert sorted(planned.index(check) for part in parts for check in part) == [*range(len(planned))]
        for part in parts:
            assert part == [check for check in planned if check in part], "in the order of the whole"
        for law in {check.law.name for check in planned}:
            shares = [sum(check.law.name == law for check in part) for part in parts]
            assert max(shares) - min(shares) <= 1, "costly laws are shared too"


def test_shards_draw_the_cases_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certifier, "falsify", lambda check, example: 0.0)
    planned = plan({"exchange": SHIPPED["exchange"]}, "sim:2-4,proc:2", only=["terms*", "inputs*"])
    whole = [verify(check, 10, 3).cases for check in planned]
    parts = [own_checks(planned, Shard(index, 3)) for index in range(3)]
    drawn = {planned.index(check): verify(check, 10, 3).cases for part in parts for check in part}
    assert [drawn[place] for place in range(4)] == whole
