"""The examples do the same in one process as in two under torchrun."""

import math
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from verified_losses.properties.names import LOSSES

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SHORT = [str(path) for label in LOSSES if (path := EXAMPLES / f"{label}.py").exists()]
RUN_EACH = "import runpy, sys\nfor path in sys.argv[1:]:\n    runpy.run_path(path, run_name='__main__')\n"

BATCH_SIZE = 33
"""Odd, so that two ranks hold 17 and 16 rows."""
STEPS = 8


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(*command: str) -> str:
    """Run Python and return what it prints; a failure shows both of its streams."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{EXAMPLES}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def torchrun(*command: str) -> str:
    return run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command)


def rounding_bound(exact: dict[str, Tensor], rounded: dict[str, Tensor], longest_sum: int) -> float:
    """Return how far apart two float64 runs may end that differ in the order of their sums alone.

    To first order, what rounding does to the final parameters is proportional to the unit roundoff u:
    all other factors (operations, sizes, condition, the growth of an early error over the steps) belong to
    the program. A float32 run of the same program from the same start measures that proportion: it ends
    D away from the float64 run, and a float64 run ends D u64/u32 away from exact arithmetic.
    Another order of summation has other roundings: errors that grow like the square root of the number
    of terms n in the probable case never exceed n times u in any order, so no order is sqrt(n) worse than
    the measured one (Higham & Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019). The
    longest sums, in the gradients of the scale and the bias, have one term for every image and text:
    `longest_sum` of them. Two runs are each off by as much.
    """
    distance = largest_difference(exact, rounded)
    roundoff_ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    return 2 * math.sqrt(longest_sum) * roundoff_ratio * distance


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def train_alone_and_together(
    flags: list[str], launch: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[float, float]:
    """Train the digits in one process and in two; return how far apart they end, and how far they may."""
    monkeypatch.syspath_prepend(EXAMPLES)
    digits_clip = str(EXAMPLES / "digits_clip.py")
    train = runpy.run_path(digits_clip)["main"]
    flags = [*flags, "--steps", str(STEPS), "--batch-size", str(BATCH_SIZE)]
    train([*flags, "--dtype", "float64", "--save", str(tmp_path / "one")])
    train([*flags, "--dtype", "float32", "--save", str(tmp_path / "rounded")])
    printed = launch(digits_clip, *flags, "--dtype", "float64", "--save", str(tmp_path / "two"))
    one, rounded, two = (torch.load(tmp_path / name) for name in ("one", "rounded", "two"))

    assert "matched with the right caption" in printed
    bound = rounding_bound(one, rounded, longest_sum=BATCH_SIZE**2)
    error = largest_difference(one, two)
    print(f"error {error:.3e}, bound {bound:.3e}, error/bound {error / bound:.3g}")
    return error, bound


@pytest.mark.parametrize(
    ("flags", "equal"),
    [
        pytest.param(["--loss", "clip"], True, id="clip"),
        pytest.param(["--loss", "siglip"], True, id="siglip"),
        # feature gradients 1/2 too small: the check must see it
        pytest.param(["--loss", "clip", "--convention", "open_clip"], False, id="wrong-gradient"),
    ],
)
def test_two_ranks_train_to_the_parameters_of_one_process(
    flags: list[str], equal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, bound = train_alone_and_together(flags, torchrun, tmp_path, monkeypatch)
    assert (error <= bound) == equal


def test_short_examples_print_the_same_in_one_process_and_in_two(tmp_path: Path) -> None:
    script = tmp_path / "run_each.py"
    script.write_text(RUN_EACH)
    one, two = run(str(script), *SHORT).split(), torchrun(str(script), *SHORT).split()
    assert one[::2] == two[::2]
    assert len(one) == 2 * 13
    for name, mine, theirs in zip(one[::2], one[1::2], two[1::2], strict=True):
        # numbers printed to ten places may round to neighbours, no further
        assert abs(Decimal(mine) - Decimal(theirs)) <= Decimal("1e-10"), f"{name}: {mine}, {theirs}"


def test_digits_clip_learns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    runpy.run_path(str(EXAMPLES / "digits_clip.py"))["main"](["--steps", "100"])
    percent = capsys.readouterr().out.split(": ")[-1].split("%")[0]
    assert float(percent) > 50  # guessing gives 10
