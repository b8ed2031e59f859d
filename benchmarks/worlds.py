"""Cases per second in each kind of world: ClipLoss, forward and backward, 4 rows by 16 on each rank."""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from verified_losses.properties.cases import Case
from verified_losses.properties.contracts import contracts
from verified_losses.properties.laws import Bench
from verified_losses.properties.subjects import Subject
from verified_losses.properties.worlds import World
from verified_losses.properties.worlds.horovod import HorovodWorld, horovod_missing
from verified_losses.properties.worlds.processes import shared_world
from verified_losses.properties.worlds.single import SingleWorld


def measure(world: World, seconds: float) -> dict[str, float | str]:
    """Return the median rate of `Bench.observe` over batches of ten cases, per second, and its quartiles."""
    use_horovod = world.name.startswith("horovod")
    options = (("local_loss", True), ("gather_with_grad", True), ("use_horovod", use_horovod))
    case = Case(rows=(4,) * world.size, width=16, dtype="float32", pattern="unit", options=options)
    contract, subject = contracts()["clip"], Subject("verified_losses:ClipLoss")
    bench = Bench(contract, subject, world, SingleWorld())
    bench.observe([case])
    rates = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rates) < 4:
        start = time.perf_counter()
        for _ in range(10):
            bench.observe([case])
        rates.append(10 / (time.perf_counter() - start))
    low, median, high = statistics.quantiles(rates, n=4)
    return {"world": world.name, "median": median, "low": low, "high": high}


def main() -> None:
    """Measure every world in one run and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each world (default 5)")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    worlds: list[World] = [SingleWorld(), *(shared_world(size) for size in (2, 3, 4, 8))]
    if missing := horovod_missing():
        print(f"not measured: {missing}")
    else:
        worlds += [shared_world(size, HorovodWorld) for size in (2, 3)]
    results = [measure(world, arguments.seconds) for world in worlds]
    for result in results:
        print("{world:12} {median:7.0f} cases/s (middle half {low:.0f} to {high:.0f})".format(**result))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
