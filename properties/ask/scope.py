"""What options ask for, read and checked: for `certify`, for `fuzz` and for pytest.

Imports no torch: wrong options are refused before torch is imported.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..names import COMPILED, LAWS, STEP, STEP_LAWS, meant
from ..options import Options
from ..step.target import Trainer
from ..subjects import SHIPPED, Subject, Target
from ..verify.arguments import (
    Subjects,
    Unusable,
    ask,
    ask_step,
    check_config,
    check_database,
    check_max_examples,
    check_seed,
    check_target,
    is_kept,
    kept_laws,
    read_config,
    read_widths,
    some_devices,
    some_dtypes,
    some_worlds,
    step_worlds,
)
from ..verify.known import Known
from ..verify.shards import Shard, read_shard
from ..worlds.specs import WorldSpec

NOT_OF_STEPS = "call", "parameter", "features", "widths", "empty_ranks", "interpret", "large", "inductor"
"""The options that say nothing of a step."""
Asked = Sequence[tuple[str, Options]]
"""Targets, and what is asked of each."""


@dataclass(frozen=True)
class Scope:
    """What is verified, where, and what is accepted."""

    subjects: Subjects
    are_strange: bool
    """Whether they are targets of the user's."""
    devices: tuple[str, ...]
    """The names of those that are asked for."""
    worlds: list[WorldSpec]
    known: Known
    shard: Shard
    trainers: dict[str, Trainer] = field(default_factory=dict)
    """The targets that make training steps."""

    @property
    def targets(self) -> dict[str, tuple[str, Subject | Trainer]]:
        """The losses and the training steps, with their contracts."""
        return {**self.subjects, **{label: (STEP, one) for label, one in self.trainers.items()}}

    def compiles(self, options: Options) -> bool:
        """Return whether some rank will call torch.compile."""
        real = any(spec.kind != "simulated" for spec in self.worlds)
        return real and any(is_kept(name, options.only, options.skip) for name in COMPILED)


def read(asked: Asked, options: Options, environment: Mapping[str, str]) -> Scope:
    """Read what is asked for.

    Args:
        asked: the targets; none for the shipped losses.
        options: what is asked of all.
        environment: which may name a shard.

    Raises:
        Unusable: an option is, or a target is not there.
    """
    check_seed(options.seed)
    steps = sum(one.as_ == STEP for _, one in asked)
    only_steps = bool(asked) and steps == len(asked)
    names = [*LAWS * (not only_steps), *STEP_LAWS * bool(steps)]
    kept_laws(names, options.only, options.skip)
    known = read_known(options.known, names)
    subjects, trainers = _labelled(asked) if asked else (_shipped(options), {})
    devices = some_devices(options.device)
    worlds = some_worlds(options.world, devices)
    if steps:
        step_worlds(options.world, devices, alone=only_steps)
    check_max_examples(options.max_examples)
    shard = read_shard(options.shard, environment)
    if options.database is not None:
        check_database(options.database)
    return Scope(subjects, bool(asked), devices, worlds, known, shard, trainers)


def read_known(path: Path | None, laws: Sequence[str] = LAWS) -> Known:
    """Read the file of findings to accept, of these properties.

    Raises:
        Unusable: it cannot be read, or is none.
    """
    try:
        known = Known() if path is None else Known.read(path)
        known.check(laws)
        return known
    except OSError as error:
        raise Unusable("known", f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise Unusable("known", str(error)) from error


def _labelled(asked: Asked) -> tuple[Subjects, dict[str, Trainer]]:
    """Return the losses and the training steps, by the names that they have in reports."""
    subjects: Subjects = {}
    trainers: dict[str, Trainer] = {}
    labels = _labels([(target, str(one.as_)) for target, one in asked])
    for label, (target, one) in zip(labels, asked, strict=True):
        contract, found = subject_of(target, one)
        if isinstance(found, Trainer):
            trainers[label] = found
        else:
            subjects[label] = contract, found
    for target, _ in asked:
        check_target(target)
    return subjects, trainers


def subject_of(target: str, options: Options) -> tuple[str, Subject | Trainer]:
    """Return the contract's name, and a target as a subject, or as one that makes a training step.

    Raises:
        Unusable: an option is.
    """
    if options.as_ == STEP:
        unused = {name: given for name in NOT_OF_STEPS if (given := getattr(options, name))}
        unused |= {"convention": options.convention} if options.convention != "exact" else {}
        pinned, dtypes = read_config(options.config), options.dtype.split(",")
        return STEP, ask_step(target, pinned, options.equal_rows, dtypes, options.strict, unused)
    return ask(
        target,
        options.as_,
        convention=options.convention,
        config=read_config(options.config),
        equal_rows=options.equal_rows,
        dtypes=options.dtype.split(","),
        call=options.call,
        parameters=options.parameter or (),
        features=options.features,
        interpret=options.interpret,
        strict=options.strict,
        large=options.large,
        inductor=options.inductor,
        widths=read_widths(options.widths),
        empty_ranks=options.empty_ranks,
    )


def _labels(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return a name for each target and contract: as short as tells them apart."""
    choices = [
        [Target.of(target).name for target, _ in pairs],
        [target for target, _ in pairs],
        [f"{target} as {contract}" for target, contract in pairs],
    ]
    for labels in choices:
        if len(set(labels)) == len(labels):
            return labels
    twice = ", ".join(name for name, number in Counter(choices[-1]).items() if number > 1)
    raise Unusable("", f"expected each target once, got {twice} several times")


def _shipped(options: Options) -> Subjects:
    for name in ("call", "parameter", "features", "widths"):
        if getattr(options, name):
            raise Unusable(name, "expected a target beside it: the shipped losses have a form of their own")
    unknown = sorted(set(options.loss or []) - set(SHIPPED))
    if unknown:
        got = f"{', '.join(unknown)}{meant(unknown[0], SHIPPED)}"
        raise Unusable("loss", f"expected some of {', '.join(SHIPPED)}, got {got}")
    pinned, kept = read_config(options.config), some_dtypes(options.dtype.split(","))
    chosen = {}
    for label, (contract, subject) in SHIPPED.items():
        if not options.loss or label in options.loss:
            check_config(contract, pinned)
            given = *subject.options, *pinned
            subject = replace(subject, large=options.large, inductor=options.inductor)
            chosen[label] = contract, replace(subject, options=given, dtypes=kept)
    return chosen
