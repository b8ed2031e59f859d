# ruff: noqa: RUF009  # its fields are made by a function
"""The options of the commands and of pytest, each stated once.

Imports neither torch nor a package that is not Python's own: pytest reads them where one is asked for.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from .names import CONTRACTS, DTYPES, FORMULAS, LOSSES, Convention

WORLDS = "1,sim:2-8,proc:2"
MAX_EXAMPLES = 25
MAX_EXAMPLES_OF_FUZZ = 100
COUNTEREXAMPLES = Path("build/counterexamples")
FUZZ = Path("build/fuzz")
Format = Literal["text", "github"]
"""What is printed besides: nothing, or workflow commands of GitHub."""
KEY = "[tool.verified-losses]"
"""The table of pyproject.toml that states them."""


def _option(default: Any, help: str) -> Any:
    """Return a field: its default, and what it does, as `--help` says it."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that `certify`, `fuzz` and pytest have in common."""

    as_: str | None = _option(
        None,
        f"What the target must do: {', '.join([*CONTRACTS, *FORMULAS])}, or file.py:name of a contract of "
        "your own; step: the target makes a training step.",
    )
    convention: Convention = _option(
        "exact",
        "Which gradients the target is held to: exact, or those of open_clip, where the contract has the "
        "option.",
    )
    config: str = _option(
        "",
        "Options to pin, as local_loss=true,gather_with_grad=true. The target is given, and held to, no "
        "other value of them; all values are drawn of those that are not pinned.",
    )
    call: str = _option(
        "",
        "How the target is called, where that is not found out: an expression of target and what the "
        "contract has, as 'target(scale * text @ image.T)' or 'target(image, text)[\"loss\"]'.",
    )
    parameter: list[str] | None = _option(
        None,
        "What the module holds itself, as logit_scale=exp(t_prime) or temperature=tau.",
    )
    features: str = _option(
        "",
        "raw: the target takes rows as they are; normalized: it normalises them; unit: it gets rows that "
        "are normalised, whichever it does. Found out, if not given.",
    )
    widths: str = _option(
        "",
        "The widths of features that the target takes, as 16,32, where it does not take all.",
    )
    equal_rows: bool = _option(
        False,
        "Give every rank equally many rows, for a target that cannot do otherwise.",
    )
    empty_ranks: bool = _option(
        False,
        "Now and then give some ranks of several no rows, as in the last batch of an epoch, for a target "
        "that takes that. The shipped losses are always asked.",
    )
    interpret: bool = _option(
        False,
        "Run the target's Triton kernels on the CPU, in Triton's interpreter; cases stay small.",
    )
    strict: bool = _option(
        False,
        "Judge what a target may never have promised as a defect too: unequal rows that it does not "
        "support, and a second derivative or torch.compile that raises. Else these are its limits: they are "
        "listed, and leave the verdict as it is. The shipped losses are always judged so.",
    )
    large: bool = _option(
        False,
        "Draw a batch just beyond 4,096 pairs instead of 1,024: it takes minutes, and 3 GB.",
    )
    inductor: bool = _option(
        False,
        "Compile the target by torch.compile's inductor too, with fixed and with dynamic shapes: it takes "
        "minutes, and a C++ compiler.",
    )
    loss: list[str] | None = _option(
        None, f"Which shipped losses, where no target is given: {', '.join(LOSSES)}. Else all."
    )
    only: list[str] | None = _option(
        None,
        "Which properties, by name; * and ? stand for any text and any letter.",
    )
    skip: list[str] | None = _option(
        None,
        "Which properties not.",
    )
    world: str = _option(
        WORLDS,
        "Where ranks run, separated by commas: 1 is one process, proc:2 (or 2) two real processes over "
        "gloo, proc:2-4 pools of two to four, hvd:2 two processes over Horovod, nccl:2 two over NCCL, "
        "sim:2-8 simulated ranks whose number and schedule are drawn; torchrun is the processes that "
        "torchrun started, on several hosts: torchrun --nnodes N --nproc-per-node M -m "
        "verified_losses.properties certify ... --world torchrun.",
    )
    device: str = _option(
        "cpu",
        "Where the tensors are, separated by commas: cpu, cuda (the first GPU), cuda:1, or all, the CPU "
        "and every GPU that is there. Each world runs on each of them; nccl takes GPUs of its own, one a "
        "rank.",
    )
    dtype: str = _option(
        ",".join(DTYPES),
        "Of the inputs, separated by commas.",
    )
    max_examples: int = _option(
        MAX_EXAMPLES,
        "Cases drawn for each property; costly properties take a share of it.",
    )
    max_time: str | None = _option(
        None,
        "Seconds for everything, the start included, as 60s, 5m or 8h: fewer cases are drawn where it is "
        "short, and properties for which no time is left are not verified.",
    )
    fail_fast: bool = _option(
        False,
        "Stop at the first property that does not hold, unless it is known. What was not run is listed.",
    )
    seed: int = _option(
        0,
        "The same seed draws the same cases.",
    )
    known: Path | None = _option(
        None,
        "A TOML file of findings to accept: [[known]] entries with property and reason, and, where it is "
        "to be narrower, world, target and fingerprint. An entry that matches nothing is reported.",
    )
    shard: str | None = _option(
        None,
        "Verify one part of the whole, i/n with i from 1 to n, as 1/4: each of n machines takes its "
        "checks, which draw the cases that they draw in one run, and `verified-losses merge` makes one "
        "certificate of all. If not given, it is that of a Slurm job array (SLURM_ARRAY_TASK_ID, "
        "SLURM_ARRAY_TASK_COUNT), or of the variable VERIFIED_LOSSES_SHARD, which reads as the option "
        "does.",
    )
    database: str | None = _option(
        None,
        "A folder, or redis://HOST/DB, in which Hypothesis keeps cases that failed: they are tried first "
        "in the next run, whatever its seed. Redis is a cache, over a local folder: a run goes on without"
        " it.",
    )


@dataclass(frozen=True, kw_only=True)
class CertifyOptions(Options):
    """The options of `certify`, and of pytest."""

    json: Path = _option(
        Path("build/certificate.json"),
        "Where to write the certificate.",
    )
    counterexamples: Path = _option(
        COUNTEREXAMPLES,
        "Where to write the smallest failing case of every defect, as a program to run.",
    )
    html: Path | None = _option(
        None,
        "Where to write the certificate as a page that shows it, with what was drawn and every "
        "counterexample.",
    )
    junit: Path | None = _option(
        None,
        "Where to write the certificate as JUnit XML.",
    )
    format: Format = _option(
        "text",
        "github: print each defect as a workflow command too, which GitHub shows beside the target's lines.",
    )


@dataclass(frozen=True, kw_only=True)
class CommandOptions(CertifyOptions):
    """The options of `certify` that neither pytest nor pyproject.toml has."""

    faults: str | None = _option(
        None,
        "Verify no properties, but how the ranks take it when one of them is killed, stopped, raises, exits, "
        "or calls with another shape, dtype or loss: so many faults, in processes of 2 to 4 ranks. Or the "
        "file of one fault, to inject it again. Results go to build/faults.json, or to --json.",
    )


@dataclass(frozen=True, kw_only=True)
class FuzzOptions(Options):
    """The options of `fuzz`."""

    max_examples: int = _option(
        MAX_EXAMPLES_OF_FUZZ,
        "Cases of a property in a round in which nothing is new; the first rounds are shorter, and costly"
        " properties take a share of it.",
    )
    fail_fast: bool = _option(
        False,
        "Stop at the first find that is new: neither of an earlier run nor accepted by --known. Others do"
        " not count for the exit status then.",
    )
    rounds: int | None = _option(
        None,
        "End after so many rounds. The same seed and rounds give the same finds, in however many "
        "processes: branches, which may depend on what ran before, then give nobody more cases.",
    )
    resume: bool = _option(
        False,
        "Go on with the run in the folder, which was killed or interrupted; begin one if there is none. "
        "--max-time counts from now on.",
    )
    jobs: str = _option(
        "auto",
        "How many processes draw and judge, or auto: as many as there are cores that this process may "
        "use. Each starts the ranks of its worlds besides.",
    )
    folder: Path = _option(
        FUZZ,
        "Where everything is written. The finds that are there stay there, and are run again first. Each "
        "shard needs a folder of its own.",
    )


OF_A_TARGET = (
    "as", "convention", "config", "call", "parameter", "features", "widths", "equal-rows", "empty-ranks",
    "interpret", "strict", "large", "inductor", "dtype",
)  # fmt: skip
"""What pyproject.toml may state for one target."""
NOT_OF_ALL = ("as", "config", "call", "parameter", "features", "widths", "loss", "shard", "resume")
"""What it states for all targets at once in no table."""


def names(of: type[Options]) -> dict[str, Any]:
    """Return the options by name, as the command line and pyproject.toml have them, and the type of each."""
    return {one.name.strip("_").replace("_", "-"): one.type for one in fields(of)}
