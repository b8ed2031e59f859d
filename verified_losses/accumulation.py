"""A step over a batch whose activations do not fit in memory: the gradient of the whole batch's loss."""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T", Tensor, tuple[Tensor, ...], dict[str, Tensor])
States: TypeAlias = list[tuple[torch.device | None, Tensor]]
"""Of random number generators; None is the CPU."""
SHARED = (
    "logit_scale",
    "logit_bias",
    "dist_logit_scale",
    "dist_logit_bias",
    "vocabulary_weight",
    "vocabulary_bias",
)
"""What all rows share of the arguments of this package's losses."""


def accumulate(
    model: Callable[..., Mapping[str, Any]],
    loss: Callable[..., T],
    micro_batches: Sequence[Any],
    *,
    shared: Collection[str] = SHARED,
    scale_loss: Callable[[Tensor], Tensor] | None = None,
) -> T:
    """Add to `.grad` the gradients of one batch's loss, a part of the batch at a time.

    With B the micro-batches, f(B) the features that the model makes of one, and L the loss of all features
    together, whose negatives are all other pairs::

        pass 1    F = [f(B) for B in micro_batches], without graph; g = dL/dF
        pass 2    for each B: add the gradient of sum(g[B] * f(B)), with graph

    So activations of one micro-batch are in memory at once, and the gradient of every parameter is that of
    one backward through all. A sum of the micro-batches' losses would have fewer negatives. What all rows
    share, such as the scale, gets its gradient once: upstream's accumulation adds it for every micro-batch.

    Pass 2 draws the random numbers of pass 1 again, so dropout leaves out the same elements: of torch's
    generators on the CPU, and on the devices of the model and of the micro-batches. Buffers of the model,
    such as running statistics, are changed by pass 2 alone. Statistics that normalise features in training
    are those of the micro-batch.

    Under DistributedDataParallel, and whatever else has a `no_sync`, gradients are reduced once, in the last
    backward. With a loss of this package the mean over ranks is the gradient of one process with all ranks'
    batches. Ranks may pass different numbers of micro-batches, unless the model has buffers that are
    broadcast.

    Args:
        model: returns the arguments of the loss by name: tensors with a row for each of the micro-batch's,
            and what is in `shared`. It is called with a tuple's elements, with a dict's by name, or with
            another micro-batch as it is.
        loss: called with the names that the model returns; all rows are concatenated. It returns a scalar, or
            a tuple or dict of some, which are added up.
        micro_batches: the parts of the batch, at least one.
        shared: the names of tensors that the model returns alike for every micro-batch; by default the
            scales and biases of this package's losses, and the weight and bias of a vocabulary.
        scale_loss: returns the sum of the loss's terms as backward gets it, such as the `scale` of a
            torch.amp.GradScaler.

    Returns:
        What the loss returned, without graph.

    Raises:
        TypeError: the model returns no dict.
        ValueError: there is no micro-batch; the model returns other names for one; or what is not in `shared`
            has no dimensions, or is the same memory for two micro-batches, such as a parameter.
        RuntimeError: gradients are off.

    References:
        Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021,
        section 3.2, https://arxiv.org/abs/2101.06983

    Example:
        >>> import torch
        >>> from verified_losses import ClipLoss
        >>> tower = torch.nn.Linear(2, 2, bias=False)
        >>> def model(images, texts):
        ...     return {"image_features": tower(images), "text_features": texts, "logit_scale": 1.0}
        >>> parts = [(torch.eye(2)[:1], torch.eye(2)[:1]), (torch.eye(2)[1:], torch.eye(2)[1:])]
        >>> value = accumulate(model, ClipLoss(), parts)
        >>> whole = ClipLoss()(**model(torch.eye(2), torch.eye(2)))
        >>> (expected,) = torch.autograd.grad(whole, tower.weight)
        >>> print(torch.allclose(tower.weight.grad, expected), value.requires_grad)
        True False
    """
    if not micro_batches:
        raise ValueError("micro_batches: expected at least one, got none")
    if not torch.is_grad_enabled():
        raise RuntimeError("accumulate: expected gradients to be on, got torch.no_grad or inference mode")
    devices = _devices(model, micro_batches)
    outputs, states = _without_graph(model, micro_batches, devices)
    given = {_storage(tensor) for tensor in _tensors(micro_batches)}
    cached = {name: _joined(name, outputs, shared, given) for name in outputs[0]}
    value = loss(**cached)
    terms = _terms(value)
    total = torch.stack([term.reshape(()) for term in terms]).sum()
    (total if scale_loss is None else scale_loss(total)).backward()
    after = _random_states(devices)
    start: dict[str, int] = dict.fromkeys(cached, 0)
    for number, (batch, state) in enumerate(zip(micro_batches, states, strict=True)):
        is_last = number == len(micro_batches) - 1
        with contextlib.nullcontext() if is_last else _no_sync(model):
            _set_random_states(state)
            _backward(_call(model, batch), cached, start, shared if is_last else (), shared)
    _set_random_states(after)
    detached: T = _detached(value)
    return detached


def _without_graph(
    model: Callable[..., Mapping[str, Any]], micro_batches: Sequence[Any], devices: Sequence[torch.device]
) -> tuple[list[Mapping[str, Any]], list[States]]:
    """Return what the model returns for each micro-batch, and the random states before each."""
    buffers = list(model.buffers()) if isinstance(model, nn.Module) else []
    before = [buffer.clone() for buffer in buffers]
    outputs, states = [], []
    with torch.no_grad(), _no_sync(model):
        for batch in micro_batches:
            states.append(_random_states(devices))
            outputs.append(_call(model, batch))
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
    names = [set(output) for output in outputs]
    other = next((own for own in names if own != names[0]), None)
    if other is not None:
        raise ValueError(
            f"model: expected {sorted(names[0])} for every micro-batch, as for the first, got {sorted(other)}"
        )
    return outputs, states


def _call(model: Callable[..., Mapping[str, Any]], batch: Any) -> Mapping[str, Any]:
    if isinstance(batch, Mapping):
        output = model(**batch)
    elif isinstance(batch, tuple | list):
        output = model(*batch)
    else:
        output = model(batch)
    if not isinstance(output, Mapping):
        raise TypeError(
            f"model: expected it to return a dict with the arguments of the loss, got {type(output).__name__}"
        )
    return output


def _joined(
    name: str, outputs: Sequence[Mapping[str, Any]], shared: Collection[str], given: Collection[int]
) -> Any:
    """Return an argument of the loss: a leaf that gets a gradient, where it is a floating tensor."""
    values = [output[name] for output in outputs]
    if not isinstance(values[0], Tensor):
        return values[0]
    if name in shared:
        whole = values[0]
    else:
        _check_rows(name, [value for value in values if isinstance(value, Tensor)], given)
        whole = torch.cat(values)
    return whole.detach().requires_grad_(whole.is_floating_point())


def _check_rows(name: str, values: Sequence[Tensor], given: Collection[int]) -> None:
    """Raise ValueError unless each micro-batch has rows of its own.

    Args:
        name: of the argument of the loss.
        values: of each micro-batch.
        given: the storages of the micro-batches' tensors, of which one may be in two of them.
    """
    expected = f"{name}: expected rows of each micro-batch, or {name!r} in shared"
    if any(value.ndim == 0 for value in values):
        raise ValueError(f"{expected}, got a tensor of no dimensions")
    own = [value for value in values if value.numel() and _storage(value) not in (0, *given)]
    places = {(value.data_ptr(), value.shape, value.stride()) for value in own}
    if len(places) < len(own):
        raise ValueError(f"{expected}, got the same memory for two")


def _storage(tensor: Tensor) -> int:
    """Return where a tensor's storage is; 0 if it has none, as a sparse one."""
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return 0


def _backward(
    output: Mapping[str, Any],
    cached: Mapping[str, Any],
    start: dict[str, int],
    wanted: Collection[str],
    shared: Collection[str],
) -> None:
    """Add the gradients of a micro-batch, whose rows begin at `start`, which is moved on."""
    tensors, gradients = [], []
    for name, value in output.items():
        if not isinstance(value, Tensor):
            continue
        gradient = cached[name].grad
        if name not in shared:
            rows = slice(start[name], start[name] + len(value))
            start[name] = rows.stop
            gradient = None if gradient is None else gradient[rows]
        elif name not in wanted:
            continue
        if value.requires_grad and gradient is not None:
            tensors.append(value)
            gradients.append(gradient)
    if tensors:
        torch.autograd.backward(tensors, gradients)


def _terms(value: Any) -> list[Tensor]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, tuple | list) else [value]


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return {name: term.detach() for name, term in value.items()}
    return tuple(term.detach() for term in value)


def _no_sync(model: object) -> contextlib.AbstractContextManager[Any]:
    """Return what keeps a model from reducing its gradients."""
    off = getattr(model, "no_sync", contextlib.nullcontext)
    context: contextlib.AbstractContextManager[Any] = off()
    return context


def _devices(model: object, micro_batches: Sequence[Any]) -> list[torch.device]:
    """Return the devices other than the CPU that a model and its micro-batches are on."""
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    found = dict.fromkeys(one.device for one in [*tensors, *_tensors(micro_batches)])
    return [device for device in found if device.type not in ("cpu", "meta")]


def _tensors(micro_batches: Sequence[Any]) -> list[Tensor]:
    """Return the tensors of micro-batches that are tuples, dicts or tensors."""
    found: list[Any] = []
    for batch in micro_batches:
        if isinstance(batch, Mapping):
            found += batch.values()
        else:
            found += batch if isinstance(batch, tuple | list) else [batch]
    return [one for one in found if isinstance(one, Tensor)]


def _random_states(devices: Sequence[torch.device]) -> States:
    own: States = [(None, torch.get_rng_state())]
    return own + [(device, torch.get_device_module(device).get_rng_state(device)) for device in devices]


def _set_random_states(states: States) -> None:
    for device, state in states:
        if device is None:
            torch.set_rng_state(state)
        else:
            torch.get_device_module(device).set_rng_state(state, device)
