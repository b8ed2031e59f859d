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
    made = {"accelerate": accelerate, "transformers": transformers}.get(package)
    return made() if made else {}


def gathered(data: Any, gather: Any) -> Any:
    """Apply `gather` to every tensor of a collection."""
    import torch
    from torch.utils._pytree import tree_map

    return tree_map(lambda one: gather(one) if isinstance(one, torch.Tensor) else one, data)


def lightning() -> dict[str, Any]:
    """Return LightningModule and Fabric: `all_gather` stacks the ranks' tensors in a dimension of its own.

    There is none where one process is alone. Gradients travel with sync_grads=True only. A module has a
    trainer that knows its ranks, and holds what `save_hyperparameters` saves. Beside them lie the functions
    that rank 0 alone runs.
    """
    import inspect
    import sys
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

        @property
        def is_global_zero(self) -> bool:
            return self.global_rank == 0

    class Trainer(Collectives):
        """The trainer of a module: at its first step, on CPUs."""

        training, sanity_checking, num_nodes = True, False, 1
        current_epoch = global_step = 0

        @property
        def strategy(self) -> "Trainer":
            return self

        @property
        def num_devices(self) -> int:
            return self.world_size

    class Hyperparameters(dict[str, Any]):
        """A dict whose values are attributes too."""

        def __getattr__(self, name: str) -> Any:
            try:
                return self[name]
            except KeyError:
                raise AttributeError(name) from None

        def __setattr__(self, name: str, value: Any) -> None:
            self[name] = value

    class LightningModule(Collectives, torch.nn.Module):
        current_epoch = global_step = 0
        trainer = Trainer()
        hparams = Hyperparameters()

        def log(self, *args: Any, **kwargs: Any) -> None:
            """Without a trainer, nothing is logged."""

        log_dict = print = log

        def save_hyperparameters(
            self, *names: Any, ignore: Any = (), frame: Any = None, **kwargs: Any
        ) -> None:
            """Keep the constructor's arguments, or those named, as `hparams`."""
            self.hparams = Hyperparameters(self.hparams)
            if len(names) == 1 and not isinstance(names[0], str):  # what holds them: a dict, or an object
                held = names[0]
                self.hparams.update(held if isinstance(held, dict) else vars(held))
                return
            values = (frame or sys._getframe(1)).f_locals
            left_out = {ignore} if isinstance(ignore, str) else {*ignore}
            for name, one in inspect.signature(type(self)).parameters.items():
                given = values.get(name, {})
                found = given if one.kind is one.VAR_KEYWORD else {name: given} if name in values else {}
                self.hparams.update({key: value for key, value in found.items() if key not in left_out})
            if names:
                self.hparams = Hyperparameters({key: self.hparams[key] for key in names})

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

    def reduce_one(one: torch.Tensor, reduction: str) -> torch.Tensor:
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return one
        total = one.detach().clone()
        dist.all_reduce(total)
        return total / dist.get_world_size() if reduction == "mean" else total

    def pad_across_processes(tensor: Any, dim: int = 0, pad_index: float = 0, pad_first: bool = False) -> Any:
        def pad(one: torch.Tensor) -> torch.Tensor:
            if dim >= one.ndim:
                return one
            longest = int(gather_one(torch.tensor([one.shape[dim]])).max())
            shape = list(one.shape)
            shape[dim] = longest - shape[dim]
            filled = one.new_full(shape, pad_index)
            return torch.cat([filled, one] if pad_first else [one, filled], dim)

        return gathered(tensor, pad)

    class Accelerator:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.device = torch.device("cpu")

        def gather(self, tensor: Any) -> Any:
            return gather(tensor)

        gather_for_metrics = gather

        def pad_across_processes(
            self, tensor: Any, dim: int = 0, pad_index: float = 0, pad_first: bool = False
        ) -> Any:
            return pad_across_processes(tensor, dim, pad_index, pad_first)

        def reduce(self, tensor: Any, reduction: str = "sum", scale: float = 1.0) -> Any:
            return gathered(tensor, lambda one: reduce_one(one, reduction) * scale)

        def unwrap_model(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            return model

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
        "pad_across_processes": pad_across_processes,
    }


def transformers() -> dict[str, Any]:
    """Return ModelOutput: a dataclass that is a dict of its fields, without those that are None, in order."""
    from collections import OrderedDict
    from dataclasses import fields

    class ModelOutput(OrderedDict[str, Any]):
        def __post_init__(self) -> None:
            for one in fields(self):  # type: ignore[arg-type]  # those that derive from it are dataclasses
                if (value := getattr(self, one.name)) is not None:
                    self[one.name] = value

        def __getitem__(self, key: Any) -> Any:
            return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

        def to_tuple(self) -> tuple[Any, ...]:
            return tuple(self.values())

    return {"ModelOutput": ModelOutput}
