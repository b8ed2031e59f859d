"""The sigmoid loss of SigLIP."""

from collections.abc import Iterator
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from . import checks, contrast
from .checks import Agree, Facts, Scalar
from .clip import overrides
from .exchange import exchange_bidir_with_grad, exchange_with_grad
from .gather import Rows, broadcast_rows, describe, gather_rows
from .horovod import choose_transport
from .implementations import IMPLEMENTATIONS, Batch, Implementation, Sums, of_large_batches, split
from .memory import StatedMemory
from .tiles import TILE

DIST_IMPLS: tuple[str, ...] = ("bidir", "shift", "reduce", "gather")
"""How texts can travel, the default first."""


class SigLipLoss(nn.Module):
    """A binary cross-entropy for every image and text: partners are positive, all others negative.

    With N images x[i] and texts t[j], and y[i, j] = 1 for partners, i = j, else -1::

        z[i, j] = logit_scale * <x[i], t[j]> + logit_bias
        loss = -1 / N * sum over i and j of log sigmoid(y[i, j] * z[i, j])

    Over several ranks each rank scores its images against every rank's texts. The mean of the returned
    losses, and of all gradients, equals those of one process that holds the whole batch, for equal and
    unequal numbers of rows; some ranks may hold none.

    Args:
        cache_labels: accepted for compatibility; nothing is cached.
        rank: this rank, counted within `group`; None takes it from there.
        world_size: the number of ranks in `group`; None takes it from there.
        dist_impl: how texts travel: "bidir" (default) passes them to both neighbours, "shift" to one,
            "reduce" sends one rank's at a time to all, "gather" (over Horovod default) all at once.
        chunk_size: how many images are scored at a time; 0 or None scores all at once. In the dense form
            chunks save memory only where no gradients are recorded, as the backward needs the logits of every
            chunk; in the streamed form a tile has no more rows than this.
        use_horovod: the ranks are those of Horovod, which runs already, instead of a process group;
            texts are gathered.
        group: the process group; None is the default one.
        implementation: "dense" holds all logits at once; "streamed" holds one tile of them, and forms the
            gradients in the same sweep; so does "triton", by kernels for a GPU; "auto" takes what is faster,
            or fits, as `explain` says.
        tile_size: rows and columns of a tile. None takes 256 rows and 1024 columns on a CPU, which are fast
            there, and 8192 rows and columns elsewhere, which were not measured.
        agree: "always" tells all ranks of the rows and arguments of each call, so that what is wrong, or
            differs, raises on every rank. "once" does so for the first call of a shape, dtype and
            requires_grad; a rank that is given these again takes the other ranks to have what they had then.
            If they have not, the loss is wrong without an error, or ranks wait: two ranks may not have 3 and
            2 rows, then 2 and 3, then 3 and 3. What is wrong in a later call raises on its rank alone, and
            the others wait until their process group's timeout.

    Raises:
        ValueError: `rank` is outside the world, or None without a group; `dist_impl` is unknown, or not
            "gather" over Horovod; `implementation` or `agree` is unknown; `chunk_size` is negative, or
            `tile_size` below 1; or `group` is given with `use_horovod`.
        TypeError: `chunk_size` or `tile_size` is neither an int nor None.
        ImportError: `use_horovod` is set and Horovod is not installed.
        RuntimeError: `use_horovod` is set and hvd.init() has not been called.

    Warns:
        UserWarning: `world_size=1` is one of several ranks of the process group.

    References:
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023, section 3.2,
        https://arxiv.org/abs/2303.15343

    Example:
        >>> import torch
        >>> image_features = text_features = torch.eye(2)
        >>> loss = SigLipLoss()(image_features, text_features, 10.0, -10.0)
        >>> print(f"{loss:.4f}")  # log(2) + log(1 + exp(-10))
        0.6932
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int | None = 0,
        world_size: int | None = 1,
        dist_impl: str | None = None,
        chunk_size: int | None = 0,
        *,
        use_horovod: bool = False,
        group: Any = None,
        implementation: Implementation = "auto",
        tile_size: int | None = None,
        agree: Agree = "always",
    ) -> None:
        super().__init__()
        checks.one_of("implementation", implementation, IMPLEMENTATIONS)
        checks.one_of("agree", agree, checks.AGREE)
        checks.size_or_none("tile_size", tile_size)
        self.transport = choose_transport(rank, world_size, group, use_horovod)
        ways, why = DIST_IMPLS, ""
        if use_horovod:
            ways, why = ("gather",), " over Horovod, which sends no messages from one rank to another"
        self.dist_impl = dist_impl or ways[0]
        checks.one_of("dist_impl", self.dist_impl, ways, why)
        if isinstance(chunk_size, bool) or not isinstance(chunk_size, int | None):
            raise TypeError(f"chunk_size: expected an int or None, got {type(chunk_size).__name__}")
        if chunk_size is not None and chunk_size < 0:
            raise ValueError(f"chunk_size: expected an int of at least 0, got {chunk_size}")
        self.chunk_size = chunk_size
        self.implementation: Implementation = implementation
        self.tile_size = tile_size
        self.agree: Agree = agree
        self._agreement = checks.Agreement(self.transport, agree)
        self.cache_labels = cache_labels
        self.rank, self.world_size = self.transport.rank, self.transport.world_size
        self.use_horovod = use_horovod

    def extra_repr(self) -> str:
        """Return the options that differ from their defaults, which `repr` shows."""
        return checks.options(self, SigLipLoss.__init__)

    @property
    def waits_for_device(self) -> bool:
        """Whether the host waits for the GPU: in one process no call does but the first, if all is on it."""
        return self.world_size > 1

    def explain(self, n: int, d: int, dtype: torch.dtype, device: torch.device | str) -> str:
        """Return in words which implementation computes n pairs of width d, and why, and the memory it takes.

        Args:
            n: the pairs of all ranks; the memory is that of one process which holds them.
            d: the width of the features.
            dtype: of the features.
            device: where they are.
        """
        batch = Batch("siglip", split(n, self.world_size), d, dtype, device)
        return batch.explain(self.implementation, self.tile_size, self.chunk_size, self._overridden())

    def stated_memory(self, *, rows: Rows | None = None, **inputs: Any) -> StatedMemory:
        """Return how many bytes a call and its backward save, and take at most, on this rank.

        `verified_losses.memory` has the formulas, which the loss is held to.

        Args:
            rows: the pairs of each rank; None is for as many on each as here.
            inputs: the arguments of a call, by name.
        """
        features = inputs["image_features"]
        n, d = features.shape
        batch = Batch("siglip", rows or (n,) * self.world_size, d, features.dtype, features.device)
        if self._overridden():
            return batch.memory("dense", TILE, self.rank)
        chosen = batch.choose(self.implementation, self.tile_size, self.chunk_size)
        return batch.memory(chosen.name, chosen.tile, self.rank)

    def _overridden(self) -> list[str]:
        """Return the methods of a subclass's own that are given all logits at once."""
        return overrides(self, SigLipLoss, "get_logits", "get_ground_truth")

    def get_ground_truth(
        self, device: torch.device, dtype: torch.dtype, num_logits: int, negative_only: bool = False
    ) -> Tensor:
        """Return the sign of every pair.

        Args:
            device: where the labels are used.
            dtype: that of the logits, or float32 if that is narrower.
            num_logits: n, how many images there are, and texts; the larger number of the two.
            negative_only: whether no text is the partner of an image.

        Returns:
            [n, n]: 1 for partners unless `negative_only`, -1 elsewhere.
        """
        labels = -torch.ones((num_logits, num_logits), device=device, dtype=dtype)
        return labels if negative_only else labels.fill_diagonal_(1)

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Scalar,
        logit_bias: Scalar | None = None,
    ) -> Tensor:
        """Return the logits of images against texts.

        Args:
            image_features: [n, d], floating, normalised by the caller.
            text_features: [m, d], on the same device; dtypes may differ under autocast.
            logit_scale: the inverse temperature, a number or a tensor of shape [] or [1].
            logit_bias: added to every logit, a number or a tensor of shape [] or [1]; None adds nothing.

        Returns:
            [n, m].

        Raises:
            TypeError, ValueError: features are not floating matrices of one width, or scale or bias are no
                scalars.
        """
        image = checks.floating("image_features", image_features, 2, may_be_empty=True)
        text = checks.floating("text_features", text_features, 2, may_be_empty=True)
        if text.shape[1] != image.shape[1]:
            raise ValueError(
                f"text_features: expected the width of image_features, {image.shape[1]}, got {text.shape[1]}"
            )
        checks.alike("text_features", text, "image_features", image)
        checks.scalar("logit_scale", logit_scale, image)
        if logit_bias is not None:
            checks.scalar("logit_bias", logit_bias, image)
        return contrast.scaled_product(image, text, logit_scale, logit_bias)

    @overload
    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Scalar,
        logit_bias: Scalar | None = None, output_dict: Literal[False] = False
    ) -> Tensor: ...  # fmt: skip
    @overload
    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Scalar,
        logit_bias: Scalar | None = None, *, output_dict: Literal[True]
    ) -> dict[str, Tensor]: ...  # fmt: skip
    @overload
    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Scalar,
        logit_bias: Scalar | None = None, output_dict: bool = False
    ) -> Tensor | dict[str, Tensor]: ...  # fmt: skip
    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Scalar,
        logit_bias: Scalar | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss, a scalar of the features' dtype, or float32 if that is narrower.

        Args:
            image_features: [n, d], floating, normalised by the caller.
            text_features: [n, d], row i the partner of image i, on the same device; dtypes may differ under
                autocast.
            logit_scale: the inverse temperature, a number or a tensor of shape [] or [1].
            logit_bias: added to every logit, a number or a tensor of shape [] or [1]; None adds nothing.
            output_dict: return {"contrastive_loss": loss}.

        Raises:
            TypeError, ValueError: an argument is wrong on some rank, or ranks disagree; every rank raises.
            RuntimeError: torch.distributed is not initialised and `world_size` is over 1.
        """

        def check() -> Facts:
            image, text = checks.pairs(image_features, text_features)
            checks.scalar("logit_scale", logit_scale, image)
            if logit_bias is not None:
                checks.scalar("logit_bias", logit_bias, image)
            if self.world_size == 1:
                return Facts(image.shape[0])
            form = of_large_batches(self.implementation, image.dtype, image.device)
            return Facts(image.shape[0], common=f"large batches {form}, {describe(True, text)}")

        call = f"SigLipLoss(dist_impl={self.dist_impl!r})"
        rows = tuple(facts.rows for facts in self._agreement(call, check))
        d, dtype, device = image_features.shape[1], image_features.dtype, image_features.device
        batch = Batch("siglip", rows, d, dtype, device)
        sums = batch.choose(self.implementation, self.tile_size, self.chunk_size)
        total = None
        for source, text in self._texts(text_features, rows):
            start = 0 if source == self.rank else None
            part = self._sum(sums, image_features, text, logit_scale, logit_bias, start)
            total = part if total is None else total + part
        assert total is not None
        loss = total * (self.world_size / sum(rows))
        return {"contrastive_loss": loss} if output_dict else loss

    def _sum(
        self,
        sums: Sums,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Scalar,
        logit_bias: Scalar | None,
        start: int | None,
    ) -> Tensor:
        """Sum the losses of images and one rank's texts; `start` is 0 if these are partners, else None."""
        overridden = self._overridden()
        if sums.name != "dense" and not overridden:
            return sums.sum_sigmoid(image_features, text_features, logit_scale, logit_bias, start)
        signs = None
        if "get_ground_truth" in overridden:
            n, m = len(image_features), len(text_features)
            device, dtype = image_features.device, contrast.widen(image_features).dtype
            signs = self.get_ground_truth(device, dtype, max(n, m), start is None)[:n, :m]
        size = min(self.chunk_size or 0, len(image_features))  # a larger one may be beyond torch's integers
        chunks = image_features.split(size) if size else (image_features,)
        terms: list[Tensor] = []
        first = 0
        for images in chunks:
            if not overridden:
                terms.append(contrast.sum_sigmoid(images, text_features, logit_scale, logit_bias, start))
            else:
                logits = self.get_logits(images, text_features, logit_scale, logit_bias)
                if signs is None:
                    terms.append(contrast.sum_log_sigmoid(logits, start))
                else:
                    terms.append(contrast.sum_signed(logits, signs[first : first + len(images)]))
            start = None if start is None else start + len(images)
            first += len(images)
        return sum(terms[1:], terms[0])

    def _texts(self, text_features: Tensor, rows: Rows) -> Iterator[tuple[int, Tensor]]:
        """Yield ranks and their texts as they come; differentiable if this rank's texts require grad."""
        if self.world_size == 1:
            yield self.rank, text_features
            return
        recorded = torch.is_grad_enabled() and text_features.requires_grad
        # own rows are taken as they come back: a rank whose graph lacks one message would hang the others
        if self.dist_impl == "gather":
            with torch.set_grad_enabled(recorded):
                (everyone,) = gather_rows(self.transport, rows, [text_features])
            yield from enumerate(everyone.split(rows))
        elif self.dist_impl == "reduce":
            for source in range(self.world_size):
                with torch.set_grad_enabled(recorded):
                    text = broadcast_rows(self.transport, rows, text_features, source)
                yield source, text
        else:
            yield from self._texts_in_a_ring(text_features, rows, recorded)

    def _texts_in_a_ring(
        self, text_features: Tensor, rows: Rows, recorded: bool
    ) -> Iterator[tuple[int, Tensor]]:
        rank, world_size, width = self.rank, self.world_size, text_features.shape[1]
        left, right = (rank - 1) % world_size, (rank + 1) % world_size
        yield rank, text_features
        to_right = to_left = text_features
        both_ways = 0 if self.dist_impl == "shift" else (world_size - 1) // 2
        for hop in range(1, both_ways + 1):
            lefts, rights = (rank - hop) % world_size, (rank + hop) % world_size
            shapes = (rows[rights], width), (rows[lefts], width)
            with torch.set_grad_enabled(recorded):
                to_left, to_right = exchange_bidir_with_grad(
                    left, right, to_left, to_right, *shapes, self.transport
                )
            yield rights, to_left
            yield lefts, to_right
        # the others come from the left alone: all of them, or the one that an even number of ranks leaves
        for hop in range(both_ways + 1, world_size - both_ways):
            source = (rank - hop) % world_size
            with torch.set_grad_enabled(recorded):
                to_right = exchange_with_grad(left, right, to_right, (rows[source], width), self.transport)
            yield source, to_right
