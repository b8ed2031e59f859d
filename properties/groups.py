"""Process groups smaller than the world, in which a subject runs."""

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from . import devices
from .cases import Case
from .contracts import Contract
from .examples import Example
from .reference import part
from .running import call_of_rank
from .standalone.acts import Outcome, run_each
from .subjects import Subject

ARGUMENTS = ("group", "process_group", "pg", "dist_group")
"""What a process group is called."""


@dataclass(frozen=True)
class Groups:
    """Groups of the ranks of a world; each rank is in one."""

    members: tuple[tuple[int, ...], ...]
    mesh: str = ""
    """The dimension of a device mesh that they are of; empty where `new_group` makes them."""

    @classmethod
    def of(cls, case: Case) -> "Groups":
        """Return the groups that follow from a case's seed."""
        size, generator = case.world_size, np.random.default_rng([case.seed, 8])
        mesh = generator.choice(["", "first", "second"]) if size % 2 == 0 else ""
        if mesh:
            ranks = np.arange(size).reshape(2, -1)
            parts = list(ranks.T if mesh == "first" else ranks)
        else:
            parts = np.split(generator.permutation(size), [generator.integers(2, size - 1)])
        return cls(tuple(tuple(sorted(map(int, ranks))) for ranks in parts), str(mesh))

    def make(self, rank: int) -> tuple[Any, tuple[int, ...]]:
        """Make the groups, on every rank; return this rank's, and its members."""
        own = next(ranks for ranks in self.members if rank in ranks)
        if self.mesh:
            size = sum(map(len, self.members))
            mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("first", "second"))
            return mesh.get_group(self.mesh), own
        made = [dist.new_group(list(ranks)) for ranks in self.members]
        return made[self.members.index(own)], own


def group_argument(target: Any) -> str:
    """Return the name of the argument that is a process group, as far as that shows; else nothing."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return ""
    for name in ARGUMENTS:
        if name in parameters:
            one = parameters[name]
            said = str(one.annotation)
            fits = one.default in (None, one.empty) or isinstance(one.default, dist.ProcessGroup)
            return name if fits and (one.annotation is one.empty or "Group" in said or "Any" in said) else ""
    return ""


def perform_in_groups(
    rank: int, world_size: int, subject: Subject, contract: Contract, case: Case, groups: Groups
) -> Outcome | None:
    """Run a subject once in the group of a rank; None where it takes no group."""
    target = subject.resolve()
    argument = group_argument(target)
    form = subject.form
    # a group's ranks, as a call names them, are counted within it or within the world: who does not say which
    # is not asked
    names_ranks = not form.constructed and {"rank", "world_size"} & {*form.names()}
    if not argument or names_ranks or (contract.names_ranks and not subject.stated):
        return None
    devices.use(case.device_of(rank))
    group, members = groups.make(rank)
    given = part(contract, Example(case), members)
    bound = functools.partial(target, **{argument: group})
    (outcome,) = run_each([call_of_rank(dist.get_rank(group), len(members), subject, bound, given, "train")])
    return outcome
