"""The collectives of trainers that are not installed, as their documentation describes them.

Imports no torch: a counterexample quotes it.
"""

from functools import cache
from typing import Any


@cache
def trainers(package: str) -> dict[str, Any]:
    """Return the stand-ins for a package's names; there are none for most packages."""
    if package in ("lightning", "pytorch_lightning", "lightning_fabric"):
        return lightning()
    return accelerate() if package == "accelerate" else {}


def gathered(data: Any, gather: Any) -> Any:
    """Apply `gather` to every tensor of a collection."""
    import torch
    from torch.utils._pytree import tree_map

    return tree_map(lambda one: gather(one) if isinstance(one, torch.Tensor) else one, data)


def lightning() -> dict[str, Any]:
    """Return LightningModule and Fabric: `all_gather` stacks the ranks' tensors in a dimension of its own.

    There is none where one process is alone. Gradients travel with sync_grads=True only. Beside them lie the
    functions that rank 0 alone runs.
    """
    import warnings
    from functools import wraps

    import torch
    from torch import distributed as dist
    from torch.distributed.nn import functional

    class Collectives:
        def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
            def gather(one: torch.Tensor) -> torch.Tensor:
                if self.world_size == 1:
                    return one
                with torch.set_grad_enabled(sync_grads and torch.is_grad_enabled()):
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # torch deprecates what the trainer calls
                        parts = functional.all_gather(one.contiguous(), group or dist.group.WORLD)
                    return torch.stack(list(parts))

            return gathered(data, gather)

        @property
        def world_size(self) -> int:
            return dist.get_world_size() if dist.is_initialized() else 1

        @property
        def global_rank(self) -> int:
            return dist.get_rank() if dist.is_initialized() else 0

        @property
        def local_rank(self) -> int:
            return self.global_rank

    class LightningModule(Collectives, torch.nn.Module):
        def log(self, *args: Any, **kwargs: Any) -> None:
            """Without a trainer, nothing is logged."""

        log_dict = log

        def save_hyperparameters(self, *args: Any, **kwargs: Any) -> None:
            """Nothing is saved."""

        @property
        def device(self) -> torch.device:
            tensors = [*self.parameters(), *self.buffers()]
            return tensors[0].device if tensors else torch.device("cpu")

    class Fabric(Collectives):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.device = torch.device("cpu")

        def launch(self, *args: Any, **kwargs: Any) -> None:
            """The ranks run already."""

    def rank_zero_only(function: Any) -> Any:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return None if dist.is_initialized() and dist.get_rank() else function(*args, **kwargs)

        return call

    def say(message: object, stacklevel: int = 4, **kwargs: Any) -> None:
        """Nothing is printed: what a trainer says is not about the loss."""

    said = dict.fromkeys(
        ("rank_zero_warn", "rank_zero_info", "rank_zero_debug", "rank_zero_deprecation"), say
    )
    return {"LightningModule": LightningModule, "Fabric": Fabric, "rank_zero_only": rank_zero_only} | said


def accelerate() -> dict[str, Any]:
    """Return Accelerator and gather, which concatenates the ranks' tensors, without gradient."""
    import torch
    from torch import distributed as dist

    def gather_one(one: torch.Tensor) -> torch.Tensor:
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return one
        one = one.detach().reshape(1) if one.ndim == 0 else one.detach().contiguous()
        parts = [torch.empty_like(one) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, one)
        return torch.cat(parts)

    def gather(tensor: Any) -> Any:
        return gathered(tensor, gather_one)

    class Accelerator:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.device = torch.device("cpu")

        def gather(self, tensor: Any) -> Any:
            return gather(tensor)

        gather_for_metrics = gather

        @property
        def num_processes(self) -> int:
            return dist.get_world_size() if dist.is_initialized() else 1

        @property
        def process_index(self) -> int:
            return dist.get_rank() if dist.is_initialized() else 0

        @property
        def local_process_index(self) -> int:
            return self.process_index

        @property
        def is_main_process(self) -> bool:
            return self.process_index == 0

    return {
        "Accelerator": Accelerator,
        "PartialState": Accelerator,
        "AcceleratorState": Accelerator,
        "gather": gather,
    }
