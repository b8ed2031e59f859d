"""The cross-entropy of captions: of logits, or of hidden states and the weight that makes logits of them.

`token_losses` holds everything at once; the sums below hold one chunk of tokens. Of logits the backward
computes a chunk again; of hidden states the gradients are formed as the chunk is there, so that its logits
are computed once: 6 n h v operations for n tokens, hidden states of width h and a vocabulary of v. Statistics
and sums are in float32, or float64 for float64; products are in the input's dtype. Second derivatives are
those of `token_losses`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function
from torch.nn import functional as F

from . import checks
from .contrast import widen
from .streamed import through
from .tiles import LOG2E, slices, work_dtype
from .transport import eager

CHUNK = 1024
"""Tokens whose logits are made at once: products of fewer are slower."""
PASS = 2**18
"""Logits that elementwise operations take at once, so that they stay in the caches."""


class TokenLoss(NamedTuple):
    """What a token costs: with log-sum-exp L of its logits z and its label y, (1 - e) (L - z[y]) + e (L -
    mean(z)) + c L^2.
    """

    ignore_index: int = -100
    """The label that is no token: it costs nothing, whatever its logits are."""
    smoothing: float = 0.0
    """The share e of the label's probability that all labels have alike."""
    z_loss: float = 0.0
    """The factor c of the square of log-sum-exp."""


def fused_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    chunk_size: int = CHUNK,
    reduction: str = "mean",
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """Return the cross-entropy of tokens, without the logits of all of them in memory.

    With n hidden states h[k], labels y[k] and logits z[k] = weight @ h[k] + bias of v classes, and with
    L[k] = log(sum over j of exp(z[k, j]))::

        loss[k] = (1 - label_smoothing) * (L[k] - z[k, y[k]])
                  + label_smoothing * (L[k] - mean over j of z[k, j])
                  + z_loss * L[k]^2

    The result is the sum over the tokens whose label is not `ignore_index`, or their mean, which is 0 where
    there are none. Each rank has its own: for a mean over the tokens of all ranks use `CoCaLoss`.

    Besides its arguments it holds chunk_size * v logits, and until the end of the backward the gradients of
    what requires any: n * width + v * width + v numbers, in float32 for half precision. On a CPU it holds as
    long a copy of the hidden states of tokens that are not ignored, up to n * width numbers. Under torch.func
    and in forward mode it holds all logits. torch's own `linear_cross_entropy` has no second derivatives by
    chunks, and was 2.1 to 8.9 times slower on a CPU.

    Args:
        hidden: [n, width], floating.
        weight: [v, width], of the dtype and on the device of `hidden`; dtypes may differ under autocast.
        target: [n] int64 labels in [0, v), or `ignore_index`. On a GPU a label that is neither raises
            torch's own error.
        bias: [v], of the dtype of `weight`; None adds nothing.
        ignore_index: the label that counts nothing; it need not be in the vocabulary.
        chunk_size: how many tokens have logits in memory at once.
        reduction: "mean" or "sum".
        label_smoothing: in [0, 1].
        z_loss: the factor of the squared log-sum-exp, which keeps logits from drifting; at least 0.

    Returns:
        A scalar of the dtype of `hidden`, or float32 if that is narrower.

    Raises:
        TypeError, ValueError: an argument is wrong.

    References:
        Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2016, section 7,
        https://arxiv.org/abs/1512.00567, has label smoothing; Chowdhery et al., PaLM: Scaling Language
        Modeling with Pathways, 2022, section 5, https://arxiv.org/abs/2204.02311, the z-loss.

    Example:
        >>> import torch
        >>> hidden, weight = torch.zeros(3, 2), torch.ones(4, 2)
        >>> loss = fused_linear_cross_entropy(hidden, weight, torch.tensor([1, 3, -100]))
        >>> print(f"{loss:.4f}")  # log(4)
        1.3863
    """
    kind = token_loss(ignore_index, label_smoothing, z_loss)
    checks.floating("hidden", hidden, 2, may_be_empty=True)
    checks.floating("weight", weight, 2)
    check_projection(hidden, weight, bias, "hidden", "weight", "bias")
    check_target(target, hidden.shape[:1], weight.shape[0], kind, hidden.device, "target", "hidden")
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int):
        raise TypeError(f"chunk_size: expected an int, got {type(chunk_size).__name__}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size: expected an int of at least 1, got {chunk_size}")
    checks.one_of("reduction", reduction, ("mean", "sum"))
    total = sum_linear(hidden, weight, bias, target, kind, chunk_size)
    if reduction == "sum":
        return total
    return total / (target != ignore_index).sum().clamp(min=1)


def token_loss(
    ignore_index: object, label_smoothing: object, z_loss: object, name: str = "ignore_index"
) -> TokenLoss:
    """Return what a token costs, if the options are right; else raise TypeError or ValueError."""
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"{name}: expected an int, got {type(ignore_index).__name__}")
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"{name}: expected an int of 64 bits, got {ignore_index}")
    numbers: list[float] = []
    for option, value, most in (("label_smoothing", label_smoothing, 1.0), ("z_loss", z_loss, float("inf"))):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{option}: expected a number, got {type(value).__name__}")
        if not 0 <= value <= most or value == float("inf"):
            allowed = "a number in [0, 1]" if most == 1 else "a finite number of at least 0"
            raise ValueError(f"{option}: expected {allowed}, got {value}")
        numbers.append(float(value))
    return TokenLoss(ignore_index, *numbers)


def check_projection(
    hidden: Tensor, weight: Tensor, bias: object, hidden_name: str, weight_name: str, bias_name: str
) -> None:
    """Raise unless a weight, and a bias if there is one, make logits of hidden states."""
    checks.alike(weight_name, weight, hidden_name, hidden)
    if weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"{weight_name}: expected the width of {hidden_name}, {hidden.shape[-1]}, got {weight.shape[1]}"
        )
    tokens = math.prod(hidden.shape[:-1])
    if tokens * len(weight) > checks.MOST_ELEMENTS:
        most = checks.MOST_ELEMENTS // len(weight)
        raise ValueError(f"{hidden_name}: expected at most {most} tokens, got {tokens}")
    if bias is None:
        return
    offset = checks.floating(bias_name, bias, 1)
    checks.alike(bias_name, offset, weight_name, weight)
    if len(offset) != len(weight):
        raise ValueError(
            f"{bias_name}: expected one number for each row of {weight_name}, {len(weight)}, "
            f"got {len(offset)}"
        )


def check_target(
    target: object,
    shape: Sequence[int],
    classes: int,
    kind: TokenLoss,
    device: torch.device,
    name: str,
    other: str,
    pad_name: str = "ignore_index",
) -> None:
    """Raise unless labels fit tokens of a shape; that they are in the vocabulary is read on a CPU alone."""
    if not isinstance(target, Tensor) or target.dtype != torch.int64:
        got = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise TypeError(f"{name}: expected an int64 tensor, got {got}")
    checks.no_dtensor(name, target)
    if target.shape != torch.Size(shape):
        raise ValueError(
            f"{name}: expected the shape of the tokens in {other}, {list(shape)}, got {list(target.shape)}"
        )
    if target.device != device:
        raise ValueError(f"{name}: expected the device of {other}, {device}, got {target.device}")
    if target.is_cpu and not torch.compiler.is_compiling():
        count_tokens(target, classes, kind, name, pad_name)


def count_tokens(target: Tensor, classes: int, kind: TokenLoss, name: str, pad_name: str) -> int:
    """Return how many labels are tokens; raise ValueError where one is outside the vocabulary."""
    if not target.numel():
        return 0
    is_token = target != kind.ignore_index
    ids = target.masked_fill(~is_token, 0)
    tokens, low, high = torch.stack([is_token.sum(), ids.amin(), ids.amax()]).tolist()
    if low < 0 or high >= classes:
        raise ValueError(
            f"{name}: expected token ids in [0, {classes}) or {pad_name}={kind.ignore_index}, "
            f"got {low if low < 0 else high}"
        )
    return int(tokens)


def token_losses(logits: Tensor, target: Tensor, kind: TokenLoss) -> Tensor:
    """Sum what [n, v] logits and [n] labels cost, with all that torch keeps of them in memory."""
    wide = widen(logits)
    total = F.cross_entropy(
        wide, target, ignore_index=kind.ignore_index, reduction="sum", label_smoothing=kind.smoothing
    )
    if kind.z_loss:
        is_token = target != kind.ignore_index
        squares = wide.masked_fill(~is_token.unsqueeze(1), 0).logsumexp(1).square()
        total = total + kind.z_loss * squares.masked_fill(~is_token, 0).sum()
    return total


def linear_token_losses(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, kind: TokenLoss
) -> Tensor:
    """Sum what hidden states cost, with the logits of all in memory."""
    is_token = (target != kind.ignore_index).unsqueeze(1)
    return token_losses(F.linear(hidden.masked_fill(~is_token, 0), weight, bias), target, kind)


@eager
def sum_logits(logits: Tensor, target: Tensor, kind: TokenLoss, chunk: int | None = None) -> Tensor:
    """Sum what [b, t, v] logits and [b, t] labels cost, a chunk of tokens at a time, without a copy."""
    tokens = chunk or max(PASS // logits.shape[2], 1)
    total: Tensor = _OfLogits.apply(logits, target, kind, tokens)
    return total


@eager
def sum_linear(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    kind: TokenLoss,
    chunk: int = CHUNK,
) -> Tensor:
    """Sum what [n, width] hidden states and [n] labels cost, a chunk of tokens at a time.

    Args:
        hidden: [n, width].
        weight: [v, width].
        bias: [v], or None.
        target: [n].
        kind: what a token costs.
        chunk: how many tokens have logits in memory at once.
    """
    device = hidden.device.type
    if checks.is_autocast_on(device) and hidden.dtype != torch.float64:
        narrow = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(narrow), weight.to(narrow)
        bias = None if bias is None else bias.to(narrow)
    if checks.is_transformed():
        return linear_token_losses(hidden, weight, bias, target, kind)
    if hidden.is_cpu:
        # what is no token costs no product where the host sees it; on a GPU it would have to wait
        is_token = target != kind.ignore_index
        hidden, target = hidden[is_token], target[is_token]
    recorded = torch.is_grad_enabled()
    # what is taken in float32 is to stay so
    with checks.without_autocast(device):
        total: Tensor = _OfHidden.apply(hidden, weight, bias, target, kind, chunk, recorded)
    return total


class _Chunk:
    """The exponentials of a chunk of logits, less the largest of each row, in place of the logits."""

    def __init__(self, logits: Tensor, target: Tensor, kind: TokenLoss) -> None:
        self.kind, self.classes = kind, logits.shape[1]
        self.ignored = target == kind.ignore_index
        self.labels = target.masked_fill(self.ignored, 0).unsqueeze(1)
        partner = logits.gather(1, self.labels).squeeze(1)
        top = logits.amax(1)
        logits.sub_(top.unsqueeze(1))
        spread = logits.mean(1) if kind.smoothing else None
        self.exponentials = logits.mul_(LOG2E).exp2_()
        self.sum = logits.sum(1)
        log_sum = self.sum.log()
        self.log_sum_exp = top + log_sum
        costs = (top - partner) + log_sum
        if spread is not None:
            costs = (1 - kind.smoothing) * costs + kind.smoothing * (log_sum - spread)
        if kind.z_loss:
            costs = costs + kind.z_loss * self.log_sum_exp.square()
        self.costs = costs.masked_fill(self.ignored, 0)

    def slope(self) -> Tensor:
        """Return the gradient of the logits in place of the exponentials; of what is no token it is 0."""
        kind = self.kind
        factor = 1 / self.sum
        if kind.z_loss:
            factor = factor * (1 + 2 * kind.z_loss * self.log_sum_exp)
        slope = self.exponentials.mul_(factor.unsqueeze(1))
        own = slope.new_full(self.labels.shape, kind.smoothing - 1)
        slope.scatter_add_(1, self.labels, own)
        if kind.smoothing:
            slope.sub_(kind.smoothing / self.classes)
        return slope.masked_fill_(self.ignored.unsqueeze(1), 0)


class _OfLogits(Function):
    """The sum of what logits cost; the backward computes each chunk again."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, kind: TokenLoss, chunk: int) -> Tensor:
        work = work_dtype(logits)
        total = logits.new_zeros((), dtype=work)
        for place in _places(logits, chunk):
            total += _Chunk(_copy(logits[place], work), target[place].flatten(), kind).costs.sum()
        ctx.save_for_backward(logits, target)
        ctx.kind, ctx.chunk = kind, chunk
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        logits, target = ctx.saved_tensors
        if torch.is_grad_enabled():

            def dense(logits: Tensor) -> list[Tensor]:
                return [token_losses(logits.flatten(0, 1), target.flatten(), ctx.kind)]

            return *through(dense, (logits,), (True,), [grad]), None, None, None
        found = torch.empty_like(logits)
        for place in _places(logits, ctx.chunk):
            own, labels = found[place], target[place].flatten()
            own.copy_(
                _Chunk(_copy(logits[place], grad.dtype), labels, ctx.kind).slope().view_as(own).mul_(grad)
            )
        return found, None, None, None


class _OfHidden(Function):
    """The sum of what hidden states cost; gradients are formed with it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        kind: TokenLoss,
        chunk: int,
        recorded: bool,
    ) -> Tensor:
        work = work_dtype(hidden)
        total = hidden.new_zeros((), dtype=work)
        wanted = ctx.needs_input_grad[:3] if recorded else (False, False, False)
        inputs = (hidden, weight, bias)
        found = [
            torch.zeros_like(one, dtype=work) if one is not None and want else None
            for one, want in zip(inputs, wanted, strict=True)
        ]
        of_hidden, of_weight, of_bias = found
        memory = hidden.new_empty(min(chunk, len(hidden)), len(weight))
        for rows in slices(len(hidden), chunk):
            ignored = (target[rows] == kind.ignore_index).unsqueeze(1)
            own = hidden[rows].masked_fill(ignored, 0)
            logits = torch.mm(own, weight.T, out=memory[: len(own)])
            if bias is not None:
                logits.add_(bias)
            total += _sum_in_place(logits, target[rows], kind, any(wanted), of_bias)
            if of_hidden is not None and kind.z_loss and hidden.dtype == torch.float16:
                of_hidden[rows] = logits.to(work) @ weight.to(work)  # a slope times a weight may overflow
            elif of_hidden is not None:
                of_hidden[rows] = logits @ weight
            if of_weight is not None and hidden.dtype == torch.float16:
                of_weight += logits.to(work).T @ own.to(work)  # a sum over tokens of float16 may overflow
            elif of_weight is not None:
                of_weight += logits.T @ own
        ctx.kind = kind
        ctx.found = [one is not None for one in found]
        if recorded:
            ctx.save_for_backward(hidden, weight, bias, target, *(one for one in found if one is not None))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, target, *rest = ctx.saved_tensors
        inputs = hidden, weight, bias
        if torch.is_grad_enabled():
            given = [one for one in inputs if one is not None]

            def dense(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> list[Tensor]:
                return [linear_token_losses(hidden, weight, bias, target, ctx.kind)]

            found = iter(through(dense, given, ctx.needs_input_grad[: len(given)], [grad]))
            gradients = [None if one is None else next(found) for one in inputs]
        else:
            saved = iter(rest)
            parts = [next(saved) if there else None for there in ctx.found]
            gradients = [
                None if part is None or one is None else (part * grad).to(one.dtype)
                for part, one in zip(parts, inputs, strict=True)
            ]
        return *gradients, None, None, None, None


def _sum_in_place(
    logits: Tensor, target: Tensor, kind: TokenLoss, sloped: bool, of_bias: Tensor | None
) -> Tensor:
    """Sum what [n, v] logits cost, and write over them, if `sloped` with their gradient.

    Args:
        logits: in the dtype of products.
        target: [n].
        kind: what a token costs.
        sloped: whether the gradient is wanted.
        of_bias: [v], what the gradients of all rows are added to; None if it is not wanted.
    """
    work = work_dtype(logits)
    total = logits.new_zeros((), dtype=work)
    for rows in slices(len(logits), max(PASS // logits.shape[1], 1)):
        part = _Chunk(logits[rows].to(work), target[rows], kind)
        total += part.costs.sum()
        if sloped:
            slope = part.slope()
            if of_bias is not None:
                of_bias += slope.sum(0)
            if slope.dtype != logits.dtype:
                logits[rows] = slope
    return total


def _places(logits: Tensor, chunk: int) -> list[tuple[slice, slice]]:
    """Return the slices of captions and of their tokens that have `chunk` tokens, or fewer."""
    captions, length = logits.shape[:2]
    tokens = slices(length, chunk)
    return [(own, part) for own in slices(captions, max(chunk // length, 1)) for part in tokens]


def _copy(logits: Tensor, work: torch.dtype) -> Tensor:
    """Return a copy of [b, t, v] logits as [b t, v] that may be written to."""
    return logits.to(work, copy=True, memory_format=torch.contiguous_format).flatten(0, 1)
