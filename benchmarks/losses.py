"""Time every loss, forward and backward, beside open_clip's in the same run.

    python benchmarks/losses.py --json build/losses.json
    python benchmarks/losses.py --device cuda
    python benchmarks/losses.py --sizes 256,1024,4096,12288,24576 --threads 2 --plot build/losses.svg
    python benchmarks/losses.py --sizes 8192,32768 --device cuda --dtype bfloat16

One process, then two over gloo, one thread each. Calls alternate, ours and theirs; each pair of
neighbouring calls gives a ratio, and the median ratio counts, so that a change of the machine's speed
during the run weighs on both alike.

With --sizes ClipLoss and SigLipLoss are timed by the number of pairs, in one process, beside open_clip's and
beside the product of two tiles, which says how fast the machine multiplies at that moment: the share is the
time that 8 N^2 d operations (the sigmoid: 6) take at that rate, by the time taken. With one thread time is
that of the processor, as others may use the machine; with more it is what passes, so that the machine must be
idle. Memory is what a process of its own has at most, beyond what it has before the call. What holds all
logits is left out where these do not fit half of the memory that is free. Last come the powers of the number
of pairs, from 1024 on, that time and memory grow with, fitted by least squares to logarithms: 2 and, by
tiles, 1 are right.

On a GPU, which must be idle, kernels are timed beside the others, ours and those of memeff and siglip-kernel
where they are installed, and torch.compile of the dense form; the rate is that of products of 8192 rows and
columns in the same dtype, and memory is what torch allocates.
"""

import argparse
import importlib.util
import json
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import normalize

import verified_losses

BATCH, WIDTH, VOCABULARY, LENGTH = 256, 512, 1000, 32
OPERATIONS = {"ClipLoss": 8, "SigLipLoss": 6}
"""Of a loss and its gradients by tiles, as multiples of N^2 d."""

FORMS = ("dense", "streamed", "open_clip")
"""Of a loss."""
ON_GPU = ("triton", "compiled", "peer")
"""Forms that are timed on a GPU alone: our kernels, torch.compile of the dense form, and, where they are
installed, the kernels of memeff (ClipLoss) and siglip-kernel (SigLipLoss)."""

Row = dict[str, Any]


class Machine(NamedTuple):
    """The device, the dtype and the threads that losses are timed with by the number of pairs."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    threads: int = 1
    width: int = WIDTH

    @property
    def clock(self) -> Callable[[], float]:
        """Return what tells the time, in seconds."""
        alone = self.device == "cpu" and self.threads == 1
        return time.process_time if alone else time.perf_counter


def load_open_clip() -> ModuleType:
    """Load open_clip's losses alone: importing the package would import all its models."""
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        sys.exit("open_clip is not installed: pip install --no-deps open_clip_torch==3.3.0")
    path = Path(package.submodule_search_locations[0]) / "loss.py"
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def configurations(world_size: int) -> list[tuple[str, dict[str, Any]]]:
    """Return the losses and options to time; in one process the options about ranks do nothing."""
    weights = {"caption_loss_weight": 2.0, "clip_loss_weight": 1.0}
    if world_size == 1:
        return [("ClipLoss", {}), ("SigLipLoss", {}), ("CoCaLoss", weights), ("DistillClipLoss", {})]
    flags = [
        {"local_loss": local, "gather_with_grad": grad} for local in (False, True) for grad in (False, True)
    ]
    return [
        *[("ClipLoss", both) for both in flags],
        *[("SigLipLoss", {"dist_impl": way}) for way in ("bidir", "shift", "reduce", "gather")],
        *[("CoCaLoss", weights | both) for both in flags[1::2]],
        *[("DistillClipLoss", both) for both in flags[1::2]],
    ]


def arguments(loss: str, device: str) -> tuple[list[Any], list[Tensor]]:
    """Return the arguments of a loss, on a device, and which of them get gradients."""
    with torch.device(device):
        return _arguments(loss)


def _arguments(loss: str) -> tuple[list[Any], list[Tensor]]:
    image, text, teacher_image, teacher_text = normalize(torch.randn(4, BATCH, WIDTH), dim=-1)
    scale, bias = torch.tensor(14.0), torch.tensor(-10.0)
    logits = torch.randn(BATCH, LENGTH, VOCABULARY) if loss == "CoCaLoss" else torch.empty(0)
    labels = torch.randint(VOCABULARY, (BATCH, LENGTH))
    positional: dict[str, list[Any]] = {
        "ClipLoss": [image, text, scale],
        "SigLipLoss": [image, text, scale, bias],
        "CoCaLoss": [image, text, logits, labels, scale],
        "DistillClipLoss": [image, text, scale, teacher_image, teacher_text, scale.clone()],
    }
    wanted = {"SigLipLoss": [image, text, scale, bias], "CoCaLoss": [image, text, logits, scale]}
    leaves = [tensor.detach().requires_grad_() for tensor in wanted.get(loss, [image, text, scale])]
    by_id = {id(old): new for old, new in zip(wanted.get(loss, [image, text, scale]), leaves, strict=True)}
    return [by_id.get(id(argument), argument) for argument in positional[loss]], leaves


def stopwatch(
    module: Any,
    inputs: list[Any],
    leaves: list[Tensor],
    world_size: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Callable[[], float]:
    """Return a function that runs forward and backward once and returns the seconds it took."""
    on_gpu = leaves[0].device.type != "cpu"

    def once() -> float:
        if world_size > 1:
            dist.barrier()
        if on_gpu:
            torch.accelerator.synchronize()
        start = clock()
        loss = module(*inputs)
        torch.autograd.grad(loss[0] + loss[1] if isinstance(loss, tuple) else loss, leaves)
        if on_gpu:
            torch.accelerator.synchronize()
        return clock() - start

    return once


def measure(rank: int, world_size: int, seconds: float, only: str, device: str = "cpu") -> list[Row]:
    """Time every configuration for about `seconds`; a call takes as long as on its slowest rank."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    warnings.simplefilter("ignore")  # deprecated collectives there, the inexact combination here
    open_clip = load_open_clip()
    rows = []
    for loss, options in configurations(world_size):
        if only not in loss:
            continue
        inputs, leaves = arguments(loss, device)
        ranks = {"rank": rank, "world_size": world_size}
        ours, theirs = (
            stopwatch(getattr(package, loss)(**options, **ranks), inputs, leaves, world_size)
            for package in (verified_losses, open_clip)
        )
        for _ in range(3):
            pair = torch.tensor([ours(), theirs()])
        if world_size > 1:
            dist.all_reduce(pair, dist.ReduceOp.MAX)
        pairs = max(10, int(seconds / float(pair.sum())))
        times = torch.empty(pairs, 2, dtype=torch.float64)
        for i in range(pairs):
            # who goes first alternates
            for k in (0, 1) if i % 2 else (1, 0):
                times[i, k] = (ours, theirs)[k]()
        if world_size > 1:
            dist.all_reduce(times, dist.ReduceOp.MAX)
        low, ratio, high = (times[:, 0] / times[:, 1]).quantile(times.new_tensor([0.25, 0.5, 0.75])).tolist()
        ours_ms, theirs_ms = (times.median(0).values * 1e3).tolist()
        shown = ", ".join(f"{name}={value}" for name, value in options.items() if "weight" not in name)
        row = {
            "processes": world_size,
            "loss": loss,
            "options": shown,
            "pairs": pairs,
            "ours_ms": ours_ms,
            "open_clip_ms": theirs_ms,
            "ratio": ratio,
            "quartiles": [low, high],
        }
        rows.append(row)
        if rank == 0:
            print(table_row(row), flush=True)
    return rows


def seconds_an_operation(machine: Machine) -> float:
    """Return what one operation takes of a product of two tiles, as fast as this machine does them now."""
    rows, columns = (256, 1024) if machine.device == "cpu" else (8192, 8192)
    like = torch.empty(0, device=machine.device, dtype=machine.dtype)
    left, right, out = (
        torch.randn_like(like.new_empty(shape))
        for shape in ((rows, machine.width), (columns, machine.width), (rows, columns))
    )
    times = []
    for _ in range(8):
        _finish(machine)
        start = machine.clock()
        torch.mm(left, right.T, out=out)
        _finish(machine)
        times.append(machine.clock() - start)
    return statistics.median(times) / (2 * rows * columns * machine.width)


def _finish(machine: Machine) -> None:
    if machine.device != "cpu":
        torch.accelerator.synchronize()


def pairs_of(loss: str, count: int, machine: Machine) -> tuple[list[Any], list[Tensor]]:
    """Return the arguments of a loss of `count` pairs; all tensors get gradients."""
    with torch.device(machine.device):
        image, text = (
            normalize(torch.randn(count, machine.width), dim=-1).to(machine.dtype) for _ in range(2)
        )
        scalars = [torch.tensor(14.0), torch.tensor(-10.0)][: 1 + (loss == "SigLipLoss")]
    inputs = [tensor.requires_grad_() for tensor in (image, text, *scalars)]
    return [*inputs], inputs


def measure_size(loss: str, count: int, rounds: int, machine: Machine) -> Row:
    """Time each implementation in turn, and the machine's products between them."""
    modules = _modules(loss, machine, fits(loss, count, machine))
    inputs, leaves = pairs_of(loss, count, machine)
    watches = {name: stopwatch(module, inputs, leaves, 1, machine.clock) for name, module in modules.items()}
    if count <= 2048 or machine.device != "cpu":
        for watch in watches.values():
            watch()
    times: dict[str, list[float]] = {name: [] for name in watches}
    shares: dict[str, list[float]] = {name: [] for name in watches}
    for _ in range(rounds):
        for name, watch in watches.items():
            before = seconds_an_operation(machine)
            times[name].append(watch())
            rate = (before + seconds_an_operation(machine)) / 2
            shares[name].append(OPERATIONS[loss] * count**2 * machine.width * rate / times[name][-1])
    why = getattr(verified_losses, loss)().explain(count, machine.width, machine.dtype, machine.device)
    auto = why.split(":")[0]
    ratios = [a / b for a, b in zip(times.get(auto, []), times.get("open_clip", []), strict=False)]
    del inputs, leaves, watches
    return {
        "loss": loss,
        "pairs": count,
        "width": machine.width,
        "threads": machine.threads,
        "ms": {name: 1e3 * statistics.median(found) for name, found in times.items()},
        "ratio": statistics.median(ratios) if ratios else None,
        "share": {name: statistics.median(found) for name, found in shares.items()},
        "extra_mb": {name: peak_of(loss, name, count, machine) for name in modules},
        "auto": why,
    }


def forms_of(machine: Machine) -> tuple[str, ...]:
    """Return the forms that are timed there, in their order."""
    return FORMS if machine.device == "cpu" else FORMS + ON_GPU


def _modules(loss: str, machine: Machine, all_fit: bool) -> dict[str, Any]:
    """Return a loss in each form that is timed; without those that hold all logits unless these fit."""
    names = [name for name in forms_of(machine) if all_fit or name not in ("dense", "open_clip", "compiled")]
    if importlib.util.find_spec("memeff" if loss == "ClipLoss" else "siglip_kernel") is None:
        names = [name for name in names if name != "peer"]
    return {name: _module(loss, name) for name in names}


def _module(loss: str, form: str) -> Any:
    kind = getattr(verified_losses, loss)
    if form == "open_clip":
        return getattr(load_open_clip(), loss)()
    if form == "compiled":
        return torch.compile(kind(implementation="dense"))
    if form == "peer":
        return memeff if loss == "ClipLoss" else siglip_kernel
    return kind(implementation=form)


def memeff(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Return the loss of memeff, whose temperature is a constant."""
    module = importlib.import_module("memeff.clip_loss").MemoryEfficientCLIPLoss
    loss = module(temperature=1 / 14, normalized_inputs=True, stable=False)(image, text)
    return cast(Tensor, loss + 0 * scale)


def siglip_kernel(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return the loss of siglip-kernel, with what it takes to be the fastest of its kernels."""
    loss = importlib.import_module("siglip_kernel").fused_siglip_loss
    return cast(Tensor, loss(image, text, scale.log(), bias))


def fits(loss: str, count: int, machine: Machine) -> bool:
    """Return whether all logits of a step fit half of the memory that is free."""
    module = getattr(verified_losses, loss)(implementation="dense")
    features = torch.empty(count, machine.width, device="meta")
    if machine.device == "cpu":
        free = 1024 * _kilobytes("/proc/meminfo", "MemAvailable")
    else:
        free, _ = torch.cuda.mem_get_info(machine.device)
    return bool(2 * module.stated_memory(image_features=features).peak < free)


def peak_of(loss: str, name: str, count: int, machine: Machine) -> float:
    """Return the megabytes that a step takes beyond its arguments, on a CPU in a process of its own."""
    if machine.device != "cpu":
        module = _modules(loss, machine, all_fit=True)[name]
        inputs, leaves = pairs_of(loss, count, machine)
        torch.cuda.reset_peak_memory_stats(machine.device)
        before = torch.cuda.memory_allocated(machine.device)
        stopwatch(module, inputs, leaves, 1)()
        return (torch.cuda.max_memory_allocated(machine.device) - before) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        spawn(_write_peak, (loss, name, count, machine, folder), nprocs=1)
        return float(Path(folder, "peak").read_text())


def _write_peak(_: int, loss: str, name: str, count: int, machine: Machine, folder: str) -> None:
    torch.set_num_threads(machine.threads)
    module = _modules(loss, machine, all_fit=True)[name]
    stopwatch(module, *pairs_of(loss, 64, machine), 1)()
    inputs, leaves = pairs_of(loss, count, machine)
    before = _kilobytes("/proc/self/status", "VmRSS")
    stopwatch(module, inputs, leaves, 1)()
    Path(folder, "peak").write_text(str((_kilobytes("/proc/self/status", "VmHWM") - before) / 1e3))


def _kilobytes(path: str, name: str) -> int:
    (line,) = [line for line in Path(path).read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1])


def measure_sizes(
    counts: list[int],
    only: str,
    rounds: int,
    machine: Machine,
    path: Path | None,
    earlier: Sequence[Row] = (),
) -> list[Row]:
    """Time ClipLoss and SigLipLoss of so many pairs, and print a table and the powers they grow with.

    What is measured is written to `path` as soon as it is, with what was measured earlier.
    """
    torch.set_num_threads(machine.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    forms = forms_of(machine)
    columns = [
        "loss", "pairs", "width", "auto is", *(f"{form}, ms" for form in forms), "auto / open_clip",
        *(f"share of the rate: {form}" for form in forms[1:]), *(f"extra MB: {form}" for form in forms),
    ]  # fmt: skip
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|", flush=True)
    rows = []
    for count in counts:
        for loss in OPERATIONS:
            if only not in loss:
                continue
            row = measure_size(loss, count, rounds, machine)
            rows.append(row)
            write(path, f"{machine.device}, {machine.dtype}", [*earlier, *rows])
            cells = [loss, count, machine.width, row["auto"].split(":")[0]]
            cells += [_cell(row["ms"].get(name), ".1f") for name in forms]
            cells.append(_cell(row["ratio"], ".2f"))
            cells += [_cell(row["share"].get(name), ".0%") for name in forms[1:]]
            cells += [_cell(row["extra_mb"].get(name), ".0f") for name in forms]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
    for line in growth(rows):
        print(line)
    return rows


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def curves(rows: list[Row], quantity: str) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Return the points (pairs, ms or extra_mb) of each loss in each form."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row[quantity].items():
            found.setdefault((row["loss"], name), []).append((row["pairs"], max(value, 1e-3)))
    return found


def growth(rows: list[Row]) -> list[str]:
    """Return in words which power of the number of pairs time and memory grow with."""
    lines = []
    for quantity, title in (("ms", "time"), ("extra_mb", "memory")):
        for (loss, name), points in curves(rows, quantity).items():
            large = [(math.log(pairs), math.log(value)) for pairs, value in points if pairs >= 1024]
            if len(large) > 1:
                slope = statistics.linear_regression(*zip(*large, strict=True)).slope
                lines.append(f"{loss}, {name}: {title} grows with the power {slope:.2f} of the pairs")
    return lines


def draw(rows: list[Row]) -> str:
    """Return a picture of time and memory against the number of pairs, as SVG; both axes are logarithmic."""
    parts = []
    for place, (quantity, title) in enumerate((("ms", "ms a step"), ("extra_mb", "extra MB"))):
        found = curves(rows, quantity)
        points = [point for line in found.values() for point in line]
        (left, right), (low, high) = ((min(axis), max(axis)) for axis in zip(*points, strict=True))

        def at(value: float, first: float, last: float, length: float) -> float:
            return length * math.log(value / first) / max(math.log(last / first), 1e-9)

        moved = f"translate({70 + 430 * place} 40)"
        parts.append(f'<g transform="{moved}"><rect width="300" height="300" fill="none" stroke="#999"/>')
        parts.append(f'<text y="-12">{title}, of {left} to {right} pairs: {low:.3g} to {high:.3g}</text>')
        for number, ((loss, name), line) in enumerate(found.items()):
            where = " ".join(
                f"{at(pairs, left, right, 300):.1f},{300 - at(value, low, high, 300):.1f}"
                for pairs, value in line
            )
            colour = f"hsl({360 * number // len(found)} 70% 40%)"
            parts.append(f'<polyline points="{where}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts.append(f'<text x="305" y="{14 * number + 10}" fill="{colour}">{loss} {name}</text>')
        parts.append("</g>")
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="930" height="360" font-size="11">'
    white = '<rect width="930" height="360" fill="white"/>'
    return "\n".join([head, white, *parts, "</svg>", ""])


def measure_rank(rank: int, world_size: int, seconds: float, only: str, folder: str) -> None:
    """Measure as one of several processes; rank 0 leaves the rows in `folder`."""
    store = f"file://{folder}/store"
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", store, rank=rank, world_size=world_size, timeout=limit)
    rows = measure(rank, world_size, seconds, only)
    if rank == 0:
        Path(folder, "rows.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def table_row(row: Row) -> str:
    low, high = row["quartiles"]
    return (
        f"| {row['processes']} | {row['loss']} | {row['options'] or '-'} | {row['ours_ms']:.2f} "
        f"| {row['open_clip_ms']:.2f} | {row['ratio']:.3f} | {low:.3f} to {high:.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Time every loss beside open_clip's.")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each configuration")
    parser.add_argument("--only", default="", help="losses whose name contains this")
    parser.add_argument("--device", default="cpu", help="on another than the CPU, one process alone is timed")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures here")
    parser.add_argument("--sizes", default="", help="time by the number of pairs instead, as 256,4096")
    parser.add_argument("--width", default=str(WIDTH), help="with --sizes: of features, one or several")
    parser.add_argument("--rounds", type=int, default=5, help="with --sizes: steps of each, in turn")
    parser.add_argument("--threads", type=int, default=1, help="with --sizes: of torch")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="with --sizes: of features"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="PATH", help="with --sizes: draw time and memory, as SVG"
    )
    args = parser.parse_args()
    if args.sizes:
        counts = [int(size) for size in args.sizes.split(",")]
        rows: list[Row] = []
        for width in map(int, args.width.split(",")):
            machine = Machine(args.device, getattr(torch, args.dtype), args.threads, width)
            found = measure_sizes(counts, args.only, args.rounds, machine, args.json, rows)
            if args.plot and not rows:  # of the first width
                args.plot.parent.mkdir(parents=True, exist_ok=True)
                args.plot.write_text(draw(found))
            rows += found
        return
    where = "one thread a process" if args.device == "cpu" else f"on {args.device}"
    print(f"batch {BATCH} a process, width {WIDTH}, torch {torch.__version__}, {where}\n")
    print("| processes | loss | options | ours, ms | open_clip, ms | ratio | middle half |")
    print("|---|---|---|---|---|---|---|", flush=True)
    rows = measure(0, 1, args.seconds, args.only, args.device)
    if args.device == "cpu":
        with tempfile.TemporaryDirectory() as folder:
            spawn(measure_rank, (2, args.seconds, args.only, folder), nprocs=2)
            rows += json.loads(Path(folder, "rows.json").read_text())
    write(args.json, args.device, rows)


def write(path: Path | None, device: str, rows: list[Row]) -> None:
    """Write the figures to a file, if one is asked for."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"torch": torch.__version__, "device": device, "rows": rows}
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
