"""The examples do the same in one process as in two under torchrun."""

import json
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
TRAIN_EACH = """
import json, sys, torch, digits_clip
torch.set_num_threads(1)
for flags in json.loads(sys.argv[1]):
    digits_clip.main(flags)
"""
WRONG_GRADIENT = ["--loss", "clip", "--convention", "open_clip"]
"""Feature gradients are half as large as they should be, which the comparison must see."""

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
    every: list[list[str]],
    launch: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *always: str,
) -> list[tuple[float, float]]:
    """Train the digits in one process and in two; return how far apart they end, and how far they may.

    Args:
        every: the flags of each training; one launch of two processes trains them one after another.
        launch: runs Python in two processes.
        tmp_path: where parameters are saved.
        monkeypatch: of the test.
        always: flags of the two processes alone.
    """
    monkeypatch.syspath_prepend(EXAMPLES)
    train = runpy.run_path(str(EXAMPLES / "digits_clip.py"))["main"]
    script = tmp_path / "train_each.py"
    script.write_text(TRAIN_EACH)
    together = []
    for number, flags in enumerate(every):
        asked = [*flags, "--steps", str(STEPS), "--batch-size", str(BATCH_SIZE)]
        train([*asked, "--dtype", "float64", "--save", str(tmp_path / f"one{number}")])
        train([*asked, "--dtype", "float32", "--save", str(tmp_path / f"rounded{number}")])
        together.append([*asked, *always, "--dtype", "float64", "--save", str(tmp_path / f"two{number}")])
    printed = launch(str(script), json.dumps(together))
    assert printed.count("matched with the right caption") == len(every)

    result = []
    for number in range(len(every)):
        one, rounded, two = (torch.load(tmp_path / f"{name}{number}") for name in ("one", "rounded", "two"))
        bound = rounding_bound(one, rounded, longest_sum=BATCH_SIZE**2)
        error = largest_difference(one, two)
        print(f"error {error:.3e}, bound {bound:.3e}, error/bound {error / bound:.3g}")
        result.append((error, bound))
    return result


def test_two_ranks_train_to_the_parameters_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = [["--loss", "clip"], ["--loss", "siglip"], WRONG_GRADIENT]
    clip, siglip, wrong = train_alone_and_together(every, torchrun, tmp_path, monkeypatch)
    assert clip[0] <= clip[1]
    assert siglip[0] <= siglip[1]
    assert wrong[0] > wrong[1]


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
