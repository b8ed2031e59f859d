"""What a rank does with a loss that torch.compile's inductor has compiled."""

from dataclasses import replace

import torch

from .acts import Call, Outcome, run

BACKEND = "inductor"


def run_by_inductor(calls: list[Call]) -> list[Outcome]:
    """Run calls on one compiled object, whose shapes are dynamic where it has several; return the last."""
    import torch._inductor.config as settings

    torch.compiler.reset()  # else, after a few cases, it compiles no more and runs what is eager
    loss = torch.compile(calls[0].build(), backend=BACKEND, dynamic=len(calls) > 1)
    with settings.patch(compile_threads=1):  # no processes of its own, which outlive a rank
        return [run(replace(one, mode="train"), loss, one.given()) for one in calls][-1:]
