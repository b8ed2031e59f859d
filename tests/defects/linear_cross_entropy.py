"""Defects and right variants of cross-entropies that make logits of hidden states; see `index`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Costs = Callable[..., Tensor]
"""Returns what each token of a chunk costs, given its logits, its labels, label_smoothing and z_loss."""


def costs(logits: Tensor, labels: Tensor, smoothing: float, z_loss: float) -> Tensor:
    """Return what tokens cost."""
    entropy = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    return entropy + z_loss * logits.logsumexp(1) ** 2 if z_loss else entropy


def wide(logits: Tensor) -> Tensor:
    """Return logits in at least float32."""
    return logits if logits.dtype == torch.float64 else logits.float()


def chunks(*tensors: Tensor, size: int) -> Any:
    """Return the chunks of several tensors, of which there is one at least."""
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def mean_or_sum(total: Tensor, tokens: Any, reduction: str) -> Tensor:
    """Return the sum, or it by the number of tokens."""
    return total / max(int(tokens), 1) if reduction == "mean" else total


def chunked(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    chunk_size: int = 1024,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    *,
    of_tokens: Costs = costs,
    recomputed: bool = True,
) -> Tensor:
    """Right: each chunk's logits are computed again in the backward, as upstream's."""
    kept = target != ignore_index
    rows, labels = hidden[kept], target[kept]

    def of_chunk(part: Tensor, ids: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return of_tokens(wide(F.linear(part, weight, bias)), ids, label_smoothing, z_loss).sum()

    # of nothing, but with gradients
    total = wide(hidden[:0].sum() + weight[:0].sum() + (0 if bias is None else bias[:0].sum()))
    for part, ids in chunks(rows, labels, size=chunk_size):
        if recomputed:
            total = total + checkpoint(of_chunk, part, ids, weight, bias, use_reentrant=False)
        else:
            total = total + of_chunk(part, ids, weight, bias)
    return mean_or_sum(total, kept.sum(), reduction)


def dense(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Right: all logits at once, and no z-loss, chunks or mean of nothing to be asked for."""
    total = F.cross_entropy(
        wide(F.linear(hidden, weight, bias)),
        target,
        ignore_index=ignore_index,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return mean_or_sum(total, (target != ignore_index).sum(), reduction)


def vocabulary_in_chunks(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Right: log-sum-exp over parts of the vocabulary, which are rescaled as their maximum grows."""
    kept = target != ignore_index
    rows, labels = hidden[kept], target[kept]
    offset = weight.new_zeros(len(weight)) if bias is None else bias
    top = wide(rows.new_full((len(rows),), -torch.inf))
    total = torch.zeros_like(top)
    # torch's gradient of what is indexed adds up tokens in the dtype of what it indexes
    own = (wide(rows) * wide(weight)[labels]).sum(1) + wide(offset)[labels]
    for part, more in chunks(weight, offset, size=3):
        logits = wide(F.linear(rows, part, more))
        larger = torch.maximum(top, logits.detach().amax(1))
        total = total * (top - larger).exp() + (logits - larger.unsqueeze(1)).exp().sum(1)
        top = larger
    return mean_or_sum((top + total.log() - own).sum(), kept.sum(), reduction)


def ignored_count(*args: Any, reduction: str = "mean", **options: Any) -> Tensor:
    """Tokens that are ignored count in the mean."""
    total = chunked(*args, reduction="sum", **options)
    return total / max(len(options["target"]), 1) if reduction == "mean" else total


def last_chunk_dropped(
    hidden: Tensor, weight: Tensor, target: Tensor, chunk_size: int = 1024, **options: Any
) -> Tensor:
    """A last chunk that is not full is dropped, if there is another."""
    count = len(hidden) // chunk_size * chunk_size or len(hidden)
    return chunked(hidden[:count], weight, target[:count], **options)


def mean_of_chunks(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    chunk_size: int = 1024,
    reduction: str = "mean",
    **options: Any,
) -> Tensor:
    """The mean over chunks of their means."""
    parts = [
        chunked(part, weight, ids, reduction=reduction, **options)
        for part, ids in chunks(hidden, target, size=chunk_size)
    ]
    together = torch.stack(parts)
    return together.mean() if reduction == "mean" else together.sum()


def half_sums(*args: Any, **options: Any) -> Tensor:
    """What a chunk costs passes through bfloat16."""

    def narrowed(*given: Any) -> Tensor:
        found = costs(*given)
        return found.bfloat16().to(found.dtype)

    return chunked(*args, of_tokens=narrowed, **options)


def no_rescaling(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, **options: Any
) -> Tensor:
    """Log-sum-exp without a maximum overflows."""

    def plain(logits: Tensor, labels: Tensor, smoothing: float, z_loss: float) -> Tensor:
        log_sum = logits.exp().sum(1).log()
        own = (1 - smoothing) * logits.gather(1, labels.unsqueeze(1)).squeeze(1)
        return log_sum - own - smoothing * logits.mean(1) + z_loss * log_sum**2

    return chunked(hidden, weight, target, bias, of_tokens=plain, **options)


def smooths_others(*args: Any, **options: Any) -> Tensor:
    """The label has no part of the share that is smoothed."""

    def others(logits: Tensor, labels: Tensor, smoothing: float, z_loss: float) -> Tensor:
        logs = logits.log_softmax(1)
        own = logs.gather(1, labels.unsqueeze(1)).squeeze(1)
        rest = (logs.sum(1) - own) / (logits.shape[1] - 1)
        return costs(logits, labels, 0.0, z_loss) * (1 - smoothing) - smoothing * rest

    return chunked(*args, of_tokens=others, **options)


def z_loss_constant(*args: Any, **options: Any) -> Tensor:
    """The z-loss has no gradient."""

    def constant(logits: Tensor, labels: Tensor, smoothing: float, z_loss: float) -> Tensor:
        return costs(logits, labels, smoothing, 0.0) + z_loss * logits.detach().logsumexp(1) ** 2

    return chunked(*args, of_tokens=constant, **options)


def z_loss_of_the_mean(*args: Any, **options: Any) -> Tensor:
    """The z-loss is the square of the mean, not the mean of squares."""

    def of_mean(logits: Tensor, labels: Tensor, smoothing: float, z_loss: float) -> Tensor:
        return costs(logits, labels, smoothing, 0.0) + z_loss * logits.logsumexp(1).mean() ** 2

    return chunked(*args, of_tokens=of_mean, **options)


def bias_constant(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, **options: Any
) -> Tensor:
    """The bias gets no gradient."""
    return chunked(hidden, weight, target, None if bias is None else bias.detach(), **options)


def weight_of_last_chunk(
    hidden: Tensor, weight: Tensor, target: Tensor, chunk_size: int = 1024, **options: Any
) -> Tensor:
    """The gradient of the weight is that of the last chunk, instead of being added up."""
    first = (len(hidden) - 1) // chunk_size * chunk_size
    rest = {**options, "reduction": "sum"}
    total = chunked(hidden[first:], weight, target[first:], **rest)
    total = total + chunked(hidden[:first], weight.detach(), target[:first], **rest)
    tokens = (target != options.get("ignore_index", -100)).sum()
    return mean_or_sum(total, tokens, options.get("reduction", "mean"))


class _GradientsInForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Any, *given: Any) -> Tensor:
        with torch.enable_grad():
            own = [one.detach().requires_grad_() for one in given]
            total: Tensor = function(*own)
        ctx.save_for_backward(*torch.autograd.grad(total, own))
        return total.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, *ctx.saved_tensors


def ignores_cotangent(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, **options: Any
) -> Tensor:
    """Gradients that were formed in the forward are not multiplied with the upstream one."""

    def function(*given: Tensor) -> Tensor:
        return chunked(given[0], given[1], target, given[2] if len(given) == 3 else None, **options)

    given = (hidden, weight) if bias is None else (hidden, weight, bias)
    if not torch.is_grad_enabled():
        return function(*given)
    total: Tensor = _GradientsInForward.apply(function, *given)
    return total


class _FormedOnce(_GradientsInForward):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, *(one * grad.to(one.dtype) for one in ctx.saved_tensors)


def first_order_only(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, **options: Any
) -> Tensor:
    """Gradients that were formed in the forward are constants: second derivatives are 0."""

    def function(*given: Tensor) -> Tensor:
        return chunked(given[0], given[1], target, given[2] if len(given) == 3 else None, **options)

    given = (hidden, weight) if bias is None else (hidden, weight, bias)
    if not torch.is_grad_enabled():
        return function(*given)
    total: Tensor = _FormedOnce.apply(function, *given)
    return total


class WritesOver(torch.autograd.Function):
    """Puts a weight's gradient where it belongs by itself."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        ctx.weight.grad = gradient.clone()


def writes_over_gradients(hidden: Tensor, weight: Tensor, *rest: Any, **named: Any) -> Tensor:
    return chunked(hidden, WritesOver.apply(weight), *rest, **named)  # type: ignore[no-untyped-call]
