"""Checks of arguments, whose errors are raised on every rank."""

import inspect
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from .transport import Transport, eager

Convention: TypeAlias = Literal["exact", "open_clip"]
Agree: TypeAlias = Literal["always", "once"]
AGREE = ("always", "once")
Scalar: TypeAlias = Tensor | float

MOST_ELEMENTS = 2**60
"""Of logits: more bytes than their float64 numbers have no index."""
MOST_ROWS = 2**30
"""Of a batch, whose logits have as many rows and columns."""

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Facts(NamedTuple):
    """The first message of a rank to all others."""

    rows: int
    """How many pairs this rank holds."""
    tokens: int | Tensor = 0
    """How many caption tokens of this rank are not padding; a tensor if it is compiled, in one process."""
    common: str = ""
    """What has to be the same on every rank, in words."""


def options(loss: nn.Module, init: Callable[..., None]) -> str:
    """Return the arguments of `init` that `loss` keeps and that differ from their defaults."""
    kept = [
        (name, getattr(loss, name, parameter.default), parameter.default)
        for name, parameter in inspect.signature(init).parameters.items()
    ]
    return ", ".join(f"{name}={value!r}" for name, value, default in kept if value != default)


def one_of(name: str, value: object, allowed: tuple[str, ...], why: str = "") -> None:
    """Raise ValueError unless `value` is one of `allowed`; `why` is added to the list of allowed values."""
    if value not in allowed:
        expected = ("one of " if len(allowed) > 1 else "") + ", ".join(map(repr, allowed))
        raise ValueError(f"{name}: expected {expected}{why}, got {value!r}")


def size_or_none(name: str, value: object) -> None:
    """Raise unless `value` is an int of at least 1, or None."""
    if isinstance(value, bool) or not isinstance(value, int | None):
        raise TypeError(f"{name}: expected an int or None, got {type(value).__name__}")
    if value is not None and value < 1:
        raise ValueError(f"{name}: expected an int of at least 1, got {value}")


def floating(name: str, tensor: object, ndim: int, may_be_empty: bool = False) -> Tensor:
    """Return `tensor` if it is a floating tensor of `ndim` dimensions, none empty; else raise.

    Args:
        name: of the argument.
        tensor: its value.
        ndim: how many dimensions it must have.
        may_be_empty: its first dimension may be 0.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    no_dtensor(name, tensor)
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name}: expected a floating dtype of 16 to 64 bits, got {tensor.dtype}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got layout {tensor.layout}")
    if tensor.ndim != ndim or 0 in tensor.shape[1 if may_be_empty else 0 :]:
        but = " but the first" if may_be_empty else ""
        raise ValueError(
            f"{name}: expected {ndim} dimensions, none empty{but}, got shape {list(tensor.shape)}"
        )
    return tensor


def no_dtensor(name: str, tensor: Tensor) -> None:
    """Raise TypeError where a tensor is a DTensor, which torch does not mix with others."""
    if type(tensor).__name__ == "DTensor":
        raise TypeError(
            f"{name}: expected a plain tensor, got a DTensor: give its full_tensor() or to_local()"
        )


def alike(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless two tensors share device and dtype, or autocast makes one dtype of two."""
    if tensor.dtype != other.dtype and not _autocast(tensor, other):
        raise TypeError(f"{name}: expected the dtype of {other_name}, {other.dtype}, got {tensor.dtype}")
    if tensor.device != other.device:
        raise ValueError(f"{name}: expected the device of {other_name}, {other.device}, got {tensor.device}")


def _autocast(*tensors: Tensor) -> bool:
    return all(
        tensor.dtype != torch.float64  # left as it is
        and is_autocast_on(tensor.device.type)
        for tensor in tensors
    )


def is_autocast_on(device: str) -> bool:
    """Return whether autocast is on for a type of device."""
    try:
        return torch.is_autocast_enabled(device)
    except RuntimeError:  # it has none; to ask that breaks a graph of torch 2.11
        return False


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Return a context in which tensors of a type of device are computed with in the dtypes they have."""
    return torch.autocast(device, enabled=False) if is_autocast_on(device) else nullcontext()


def is_in_func() -> bool:
    """Return whether torch.func is at work."""
    # torch has no public name for it
    return bool(getattr(torch._C, "_are_functorch_transforms_active", lambda: False)())


def is_transformed() -> bool:
    """Return whether torch.func or a forward-mode derivative is at work."""
    return is_in_func() or getattr(torch.autograd.forward_ad, "_current_level", -1) >= 0


def pairs(image_features: object, text_features: object, prefix: str = "") -> tuple[Tensor, Tensor]:
    """Return both if they are [n, d] floating features, alike; else raise."""
    image_name, text_name = prefix + "image_features", prefix + "text_features"
    image = floating(image_name, image_features, 2, may_be_empty=True)
    text = floating(text_name, text_features, 2, may_be_empty=True)
    alike(text_name, text, image_name, image)
    if text.shape != image.shape:
        raise ValueError(
            f"{text_name}: expected the shape of {image_name}, {list(image.shape)}, got {list(text.shape)}"
        )
    few_enough(image_name, image.shape[0])
    return image, text


def few_enough(name: str, rows: int, where: str = "") -> None:
    """Raise ValueError if a batch has more rows than an index of its logits can count."""
    if rows > MOST_ROWS:
        raise ValueError(f"{name}: expected at most {MOST_ROWS} rows{where}, got {rows}")


def scalar(name: str, value: object, features: Tensor) -> None:
    """Raise unless `value` is a real number or a floating tensor of shape [] or [1] near `features`."""
    if isinstance(value, Tensor):
        no_dtensor(name, value)
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating dtype, got {value.dtype}")
        if value.shape not in ((), (1,)):
            raise ValueError(f"{name}: expected shape [] or [1], got {list(value.shape)}")
        # torch mixes a CPU scalar of no dimensions with tensors of any device
        if value.device != features.device and not (value.ndim == 0 and value.device.type == "cpu"):
            raise ValueError(f"{name}: expected device {features.device}, got {value.device}")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number or a floating tensor, got {type(value).__name__}")


class Agreement:
    """How the ranks of a loss agree about its calls. What has been agreed is not copied with the loss.

    Args:
        transport: the ranks.
        how: at each call ("always"), or at the first of each shape of this rank's ("once"), which is taken to
            tell what the other ranks have.
    """

    def __init__(self, transport: Transport, how: Agree) -> None:
        self._transport, self._how = transport, how
        self._host: Transport | None = None
        self._known: dict[str, list[Facts]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Agreement, (self._transport, self._how)

    def __call__(self, call: str, check: Callable[[], Facts], has_tokens: bool = False) -> list[Facts]:
        """Check the arguments of a call; see `agree`.

        Args:
            call: the name of the call, and the options that all ranks must share.
            check: raises TypeError or ValueError for wrong arguments, else returns this rank's facts.
            has_tokens: the facts hold tokens, which differ from call to call and are exchanged at each.
        """
        if self._transport.alone:
            return agree(self._transport, call, check)
        return self._several_eagerly(call, check, has_tokens)

    def _several(self, call: str, check: Callable[[], Facts], has_tokens: bool) -> list[Facts]:
        if self._how == "always":
            return agree(self._transport, call, check, self._beside)
        found: list[Facts] = []

        def mine() -> Facts:
            if not found:
                found.append(check())
            return found[0]

        def key() -> str:
            return f"{call} {mine().rows} {mine().common}"

        # once some shape is known, other ranks may not ask about this call: an error is this rank's alone
        known = self._known.get(key()) if self._known else None
        if known is None:
            everyone = agree(self._transport, call, mine, self._beside)
            self._known[key()] = everyone
            return everyone
        if not has_tokens:
            return known
        tokens = self._beside().all_gather_numbers([int(mine().tokens)])
        return [each._replace(tokens=count) for each, (count,) in zip(known, tokens, strict=True)]

    _several_eagerly = eager(_several)

    def _beside(self) -> Transport:
        if self._host is None:
            self._host = self._transport.on_host()
        return self._host


def agree(
    transport: Transport,
    call: str,
    check: Callable[[], Facts],
    talk: Callable[[], Transport] | None = None,
) -> list[Facts]:
    """Check the arguments of `call` on every rank, and that the ranks are about to do the same thing.

    Args:
        transport: the ranks.
        call: the name of the call, and the options that all ranks must share.
        check: raises TypeError or ValueError for wrong arguments, else returns this rank's facts.
        talk: returns the ranks over what they agree over, where that is not `transport`.

    Returns:
        Every rank's facts.

    Raises:
        TypeError, ValueError: on every rank, if any rank's arguments are wrong, ranks disagree, or no rank
            holds a row.
    """
    facts = [check()] if transport.alone else _agree_eagerly(transport, call, check, talk)
    if not any(each.rows for each in facts):
        where = "" if transport.alone else " on some rank"
        raise ValueError(f"image_features: expected at least one row{where}, got none")
    few_enough("image_features", sum(each.rows for each in facts), "" if transport.alone else " on all ranks")
    return facts


def _agree(
    transport: Transport, call: str, check: Callable[[], Facts], talk: Callable[[], Transport] | None
) -> list[Facts]:
    transport.check_initialized()
    in_func = TypeError("torch.func differentiates no message between ranks: use torch.autograd")
    if is_in_func() and not transport.carries_in_func:
        raise in_func
    error: Exception | None = None
    facts = Facts(0)
    try:
        transport.check_place()
        if is_in_func():
            raise in_func
        facts = check()
        mine = f"{call} {facts.common}"
        digest = zlib.crc32(mine.encode())
    except (TypeError, ValueError) as wrong:
        error = wrong
        mine = f"{type(wrong).__name__}: {wrong}"
        digest = -1
    ranks = talk() if talk else transport
    numbers = ranks.all_gather_numbers([digest, facts.rows, int(facts.tokens)])
    digests = [row[0] for row in numbers]
    if -1 not in digests and len(set(digests)) == 1:
        return [Facts(rows, tokens) for _, rows, tokens in numbers]
    texts = ranks.all_gather_text(mine)
    if error is not None:
        raise error
    if -1 in digests:
        culprit = digests.index(-1)
        kind = TypeError if texts[culprit].startswith("TypeError") else ValueError
        raise kind(f"rank {culprit} raised {texts[culprit]}")
    other = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
    raise ValueError(f"ranks disagree: rank 0 calls {texts[0]}; rank {other} calls {texts[other]}")


_agree_eagerly = eager(_agree)
