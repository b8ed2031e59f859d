"""How many bytes the losses save for a backward, and take at most: formulas that the losses are held to.

With n pairs of width d, r x c a tile (no more than n x n), e the width of a teacher's features, and w bytes a
number (4, or 8 for float64), in one process, beyond the arguments, and 4,096 bytes of what is small::

    streamed    saved: w (2 n + 16)        peak: w (3 r c + 7 n d + 16 n)                   CLIP
                       w (2 n d + 16)            w (3 r c + 9 n d + 16 n)                   SigLIP
                       w (4 n + 16)              w (5 r c + 7 n (d + e) + 32 n)             distillation
    dense       saved: w (2 n^2 + 2 n d)   peak: w (4 n^2 + 6 n d + 16 n)                   CLIP
                       w (3 n^2 + 2 n d)         w (5 n^2 + 6 n d + 16 n)                   SigLIP
                       w (8 n^2 + 2 n (d + e))   w (11 n^2 + 6 n (d + e) + 16 n)            distillation

Captions of t tokens and a vocabulary of v take besides, with chunks of k tokens::

    logits      streamed   saved: 0                         peak: w (t v + 3 k v + 16 t)
                dense             w (2 t v + 16 t)                w (5 t v + 16 t)
    hidden      streamed   saved: w (2 t h + v h + v + 4 t) peak: w (3 (t h + v h + v) + 2 k (v + 2 h) + 32 t)
    (width h)   dense             w (4 t v + 4 t h)               w (7 t v + 4 (t h + v h + v) + 32 t)

Over several ranks, of which this one has n of all N pairs, and m is the number of ranks times the rows of the
one that has most, as messages are padded to; with a = n where `local_loss` is set, else N, and g = 1 where
`gather_with_grad` is set, else 2; r x c no more than N x N::

    streamed    saved: w (g N d + 2 N + 16)               peak: w (3 r c + 8 m d + 32 m)          CLIP
                       w (2 (N + m) d + 16 m)                   w (3 r c + 16 m d + 32 m)         SigLIP
                       w (g N (d + e) + 4 N + 16)               w (5 r c + 8 m (d + e) + 64 m)    distillation
    dense       saved: w (2 a N + 2 (N + a) d + 4 N)      peak: w (4 a N + 8 m d + 32 m)          CLIP
                       w (3 n N + (N + m) d + 16 m)             w (5 n N + 8 m d + 32 m)          SigLIP
                       w (8 a N + 2 (N + a) (d + e) + 4 N)      w (11 a N + 8 m (d + e) + 64 m)   distillation

Captions take what they take in one process: those of this rank.

"triton" takes no more than "streamed", with a tile of its own size.

What a backward saves are tensors that autograd keeps; the peak counts every tensor that an operation returns,
gradients too. What moves a message takes besides: torch.distributed has buffers of its own.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from .tiles import Tile

SMALL = 4096
"""Bytes of losses, scalars and their gradients."""
Kind = Literal["clip", "siglip", "distill"]
SQUARES: dict[Kind, tuple[int, int]] = {"clip": (2, 4), "siglip": (3, 5), "distill": (8, 11)}
"""How many n x n matrices the dense form saves, and has at most."""


class StatedMemory(NamedTuple):
    """Bytes beyond the arguments of a call, of it and its backward."""

    saved: int
    """Kept for the backward."""
    peak: int
    """Allocated at the same time, at most."""

    def plus(self, other: "StatedMemory") -> "StatedMemory":
        """Return what both take together."""
        return StatedMemory(self.saved + other.saved, self.peak + other.peak)

    def __str__(self) -> str:
        return (
            f"beyond its arguments it saves at most {size(self.saved)} for the backward, "
            f"and takes at most {size(self.peak)}"
        )


def of_pairs(
    form: str, kind: Kind, n: int, d: int, dtype: torch.dtype, tile: Tile, teacher: int = 0
) -> StatedMemory:
    """Return what a contrastive term takes, of n pairs of width d, in a form.

    Args:
        form: the implementation that is taken, not "auto".
        kind: of the loss.
        n: pairs.
        d: their width.
        dtype: of the features.
        tile: rows and columns of a tile.
        teacher: the width of the teacher's features.
    """
    width = d + teacher
    if form == "dense":
        saved, most = (count * n * n for count in SQUARES[kind])
        saved, most = saved + 2 * n * width, most + 6 * n * width + 16 * n
    else:
        area = min(tile[0], n) * min(tile[1], n)
        saved = {"clip": 2 * n, "siglip": 2 * n * d, "distill": 4 * n}[kind] + 16
        most = {
            "clip": 3 * area + 7 * n * d + 16 * n,
            "siglip": 3 * area + 9 * n * d + 16 * n,
            "distill": 5 * area + 7 * n * width + 32 * n,
        }[kind]
    return _bytes(saved, most, dtype)


class Share(NamedTuple):
    """What a rank has of the pairs of all, and what it does with those of others."""

    rows: Sequence[int]
    """Of each rank."""
    rank: int
    local: bool = True
    """It sums up the losses of its own rows alone."""
    with_grad: bool = True
    """Other ranks' rows get gradients."""


def of_gathered(
    form: str, kind: Kind, share: Share, d: int, dtype: torch.dtype, tile: Tile, teacher: int = 0
) -> StatedMemory:
    """Return what a contrastive term takes on one of several ranks, as `of_pairs` does of one process."""
    n, total, width = share.rows[share.rank], sum(share.rows), d + teacher
    padded = len(share.rows) * max(share.rows)
    if form == "dense":
        anchors = n if share.local else total
        saved, most = (count * anchors * total for count in SQUARES[kind])
        saved += (
            (total + padded) * d + 16 * padded
            if kind == "siglip"
            else 2 * (total + anchors) * width + 4 * total
        )
        most += 8 * padded * width + (64 if kind == "distill" else 32) * padded
    else:
        area = min(tile[0], total) * min(tile[1], total)
        gathered = total * width * (1 if share.with_grad else 2)
        saved = {
            "clip": gathered + 2 * total + 16,
            "siglip": 2 * (total + padded) * d + 16 * padded,
            "distill": gathered + 4 * total + 16,
        }[kind]
        most = {
            "clip": 3 * area + 8 * padded * d + 32 * padded,
            "siglip": 3 * area + 16 * padded * d + 32 * padded,
            "distill": 5 * area + 8 * padded * width + 64 * padded,
        }[kind]
    return _bytes(saved, most, dtype)


def of_logits(streamed: bool, tokens: int, vocabulary: int, chunk: int, dtype: torch.dtype) -> StatedMemory:
    """Return what captions take, given the logits of so many tokens, in chunks if they are `streamed`."""
    every, some = tokens * vocabulary, min(chunk, tokens) * vocabulary
    if streamed:
        return _bytes(0, every + 3 * some + 16 * tokens, dtype)
    return _bytes(2 * every + 16 * tokens, 5 * every + 16 * tokens, dtype)


def of_hidden(
    streamed: bool, tokens: int, vocabulary: int, width: int, chunk: int, dtype: torch.dtype
) -> StatedMemory:
    """Return what captions take, given hidden states of a width."""
    every, gradients = tokens * vocabulary, (tokens + vocabulary) * width + vocabulary
    if streamed:
        some = min(chunk, tokens) * (vocabulary + 2 * width)
        # on a CPU the hidden states of what is no padding are copied
        saved = gradients + tokens * width + 4 * tokens
        return _bytes(saved, 3 * gradients + 2 * some + 32 * tokens, dtype)
    return _bytes(4 * every + 4 * tokens * width, 7 * every + 4 * gradients + 32 * tokens, dtype)


def size(count: float) -> str:
    """Return a number of bytes in words."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _bytes(saved: int, most: int, dtype: torch.dtype) -> StatedMemory:
    item = 8 if dtype == torch.float64 else 4
    return StatedMemory(item * saved + SMALL, item * most + SMALL)
