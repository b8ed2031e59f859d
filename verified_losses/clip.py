"""The symmetric InfoNCE loss of CLIP."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from . import checks, contrast, ranks
from .checks import Agree, Convention, Facts, Scalar
from .gather import Rows, describe, gather_pair
from .horovod import choose_transport
from .implementations import IMPLEMENTATIONS, Batch, Implementation, of_large_batches, split
from .memory import Kind, StatedMemory
from .ranks import Ranks
from .tiles import TILE

Pairs = list[tuple[Tensor, Tensor]]
"""Anchors and their gallery."""


class ClipLoss(nn.Module):
    """Symmetric cross-entropy between the images and the texts of a batch.

    With N images x[i], their texts t[i] and logits z[i, j]::

        z[i, j] = logit_scale * <x[i], t[j]> + logit_bias
        loss = -1 / (2 N) * sum over i of (log softmax(z[i, :])[i] + log softmax(z[:, i])[i])

    Over several ranks the mean of the returned losses, and of all gradients, equals the loss and the
    gradients of one process that holds the whole batch, for equal and unequal numbers of rows;
    some ranks may hold none.

    Args:
        local_loss: compare this rank's rows with all ranks', instead of all with all.
        gather_with_grad: let gradients flow back to the ranks that the gathered rows came from. Second
            derivatives over several ranks equal those of one process with it alone.
        cache_labels: keep what `get_ground_truth` returns between calls.
        rank: this rank, counted within `group`; None takes it from there.
        world_size: the number of ranks in `group`; None takes it from there.
        use_horovod: the ranks are those of Horovod, which runs already, instead of a process group.
        convention: "exact" obeys the mean over ranks; "open_clip" gives upstream's gradients, in which
            `local_loss=False, gather_with_grad=False` makes feature gradients `world_size` times too small.
        group: the process group; None is the default one.
        implementation: "dense" holds all logits at once; "streamed" holds one tile of them, and computes it
            again in the backward; so does "triton", by kernels for a GPU; "auto" takes what is faster, or
            fits, as `explain` says.
        tile_size: rows and columns of a tile. None takes 256 rows and 1024 columns on a CPU, which are fast
            there, and 8192 rows and columns elsewhere, which were not measured.
        agree: "always" tells all ranks of the rows and arguments of each call, so that what is wrong, or
            differs, raises on every rank. "once" does so for the first call of a shape, dtype and
            requires_grad; a rank that is given these again takes the other ranks to have what they had then.
            If they have not, the loss is wrong without an error, or ranks wait: two ranks may not have 3 and
            2 rows, then 2 and 3, then 3 and 3. What is wrong in a later call raises on its rank alone, and
            the others wait until their process group's timeout.

    Raises:
        ValueError: `rank` is outside the world, or None without a group; `convention`, `implementation` or
            `agree` is unknown; `tile_size` is below 1; or `group` is given with `use_horovod`.
        TypeError: `tile_size` is neither an int nor None.
        ImportError: `use_horovod` is set and Horovod is not installed.
        RuntimeError: `use_horovod` is set and hvd.init() has not been called.

    Warns:
        UserWarning: `local_loss=True, gather_with_grad=False` over several ranks treats gathered rows as
            constants, which no weighting can make equal to the single process; or `world_size=1` is one
            of several ranks of the process group.

    References:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021,
        figure 3, https://arxiv.org/abs/2103.00020

    Example:
        >>> import torch
        >>> image_features = text_features = torch.eye(2)
        >>> loss = ClipLoss()(image_features, text_features, 1.0)
        >>> print(f"{loss:.4f}")  # log(1 + exp(-1))
        0.3133
    """

    _kind: Kind = "clip"

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int | None = 0,
        world_size: int | None = 1,
        use_horovod: bool = False,
        *,
        convention: Convention = "exact",
        group: Any = None,
        implementation: Implementation = "auto",
        tile_size: int | None = None,
        agree: Agree = "always",
    ) -> None:
        super().__init__()
        checks.one_of("convention", convention, ("exact", "open_clip"))
        checks.one_of("implementation", implementation, IMPLEMENTATIONS)
        checks.one_of("agree", agree, checks.AGREE)
        checks.size_or_none("tile_size", tile_size)
        self.transport = choose_transport(rank, world_size, group, use_horovod)
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank, self.world_size = self.transport.rank, self.transport.world_size
        self.use_horovod = use_horovod
        self.convention: Convention = convention
        self.implementation: Implementation = implementation
        self.tile_size = tile_size
        self.agree: Agree = agree
        self._agreement = checks.Agreement(self.transport, agree)
        self.labels: dict[tuple[torch.device, int, int], Tensor] = {}
        if self.world_size > 1 and local_loss and not gather_with_grad and convention == "exact":
            warnings.warn(
                f"{type(self).__name__}(local_loss=True, gather_with_grad=False) treats the gathered rows as "
                "constants: its gradients differ from a single process's. Use gather_with_grad=True.",
                stacklevel=2,
            )

    def extra_repr(self) -> str:
        """Return the options that differ from their defaults, which `repr` shows."""
        return checks.options(self, ClipLoss.__init__)

    @property
    def waits_for_device(self) -> bool:
        """Whether the host waits for the GPU: in one process no call does but the first, if all is on it."""
        return self.world_size > 1

    def explain(self, n: int, d: int, dtype: torch.dtype, device: torch.device | str) -> str:
        """Return in words which implementation computes n pairs of width d, and why, and the memory it takes.

        Args:
            n: the pairs of all ranks; the memory is that of one process which holds them.
            d: the width of the features, and of a teacher's.
            dtype: of the features.
            device: where they are.
        """
        teacher = d if self._kind == "distill" else 0
        batch = self._batch(split(n, self.world_size), d, dtype, device, teacher)
        return batch.explain(self.implementation, self.tile_size, overridden=self._overridden())

    def stated_memory(self, *, rows: Rows | None = None, **inputs: Any) -> StatedMemory:
        """Return how many bytes a call and its backward save, and take at most, on this rank.

        `verified_losses.memory` has the formulas, which the loss is held to.

        Args:
            rows: the pairs of each rank; None is for as many on each as here.
            inputs: the arguments of a call, by name.
        """
        return self._pairs_memory(inputs["image_features"], rows)

    def _pairs_memory(
        self,
        features: Tensor,
        rows: Rows | None,
        teacher: int = 0,
        implementation: Implementation | None = None,
    ) -> StatedMemory:
        n, d = features.shape
        batch = self._batch(rows or (n,) * self.world_size, d, features.dtype, features.device, teacher)
        if self._overridden():
            return batch.memory("dense", TILE, self.rank)
        chosen = batch.choose(implementation or self.implementation, self.tile_size)
        return batch.memory(chosen.name, chosen.tile, self.rank)

    def _overridden(self) -> list[str]:
        """Return the methods of a subclass's own that are given all logits at once."""
        return overrides(self, ClipLoss, "get_logits", "get_ground_truth")

    def _batch(
        self,
        rows: Sequence[int],
        d: int,
        dtype: torch.dtype,
        device: torch.device | str,
        teacher: int = 0,
    ) -> Batch:
        return Batch(self._kind, rows, d, dtype, device, teacher, self.local_loss, self.gather_with_grad)

    def get_ground_truth(self, device: torch.device, num_logits: int) -> Tensor:
        """Return the column of each row's partner.

        Args:
            device: where the labels are used.
            num_logits: n, how many rows this rank's logits have.

        Returns:
            [n] int64 on `device`: 0 to n - 1; with `local_loss`, the numbers of this rank's rows among all,
            every rank having n.
        """
        start = num_logits * self.rank if self.local_loss else 0
        key = (torch.device(device), num_logits, start)
        labels = self.labels.get(key)
        if labels is None:
            # labels made under inference mode could not be saved for a later backward
            with torch.inference_mode(False):
                labels = torch.arange(start, start + num_logits, device=device)
            if self.cache_labels and not torch.compiler.is_compiling():
                self.labels[key] = labels
        return labels

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Scalar,
        logit_bias: Scalar | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return logits per image and per text; collective, so every rank calls it.

        Args:
            image_features: [n, d], floating, normalised by the caller.
            text_features: [n, d], row i the partner of image i, on the same device; dtypes may differ under
                autocast.
            logit_scale: the inverse temperature, a number or a tensor of shape [] or [1].
            logit_bias: added to every logit, a number or a tensor of shape [] or [1]; None adds nothing.

        Returns:
            Two [n, N] matrices with `local_loss`, else two [N, N], N being the pairs of all ranks.

        Raises:
            TypeError, ValueError: an argument is wrong on some rank, or ranks disagree; every rank raises.
            RuntimeError: torch.distributed is not initialised and `world_size` is over 1.
        """
        rows = self._agree(lambda: self._check(image_features, text_features, logit_scale, logit_bias))
        pairs = self._pairs(image_features, text_features, rows)
        logits = [contrast.scaled_product(*pair, logit_scale, logit_bias) for pair in pairs]
        return logits[0], logits[1] if len(logits) == 2 else logits[0].T

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
        rows = self._agree(lambda: self._check(image_features, text_features, logit_scale, logit_bias))
        loss = self._contrastive(image_features, text_features, logit_scale, logit_bias, rows)
        return {"contrastive_loss": loss} if output_dict else loss

    def _check(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Scalar,
        logit_bias: Scalar | None,
        prefix: str = "",
    ) -> Facts:
        image, text = checks.pairs(image_features, text_features, prefix)
        checks.scalar(f"{prefix}logit_scale", logit_scale, image)
        if logit_bias is not None:
            checks.scalar(f"{prefix}logit_bias", logit_bias, image)
        common = ""
        if self.world_size > 1:
            # what is sent depends on it
            form = of_large_batches(self.implementation, image.dtype, image.device)
            common = f"large batches {form}, {describe(self.gather_with_grad, image, text)}"
        return Facts(image.shape[0], common=common)

    def _agree(self, check: Callable[[], Facts]) -> Rows:
        return tuple(facts.rows for facts in self._agree_facts(check))

    def _agree_facts(self, check: Callable[[], Facts], has_tokens: bool = False) -> list[Facts]:
        call = (
            f"{type(self).__name__}(local_loss={self.local_loss}, "
            f"gather_with_grad={self.gather_with_grad}, convention={self.convention!r})"
        )
        return self._agreement(call, check, has_tokens)

    def _row_weight(self, rows: Rows) -> float:
        """Return the weight of one row of logits; the mean over ranks is then the mean over all rows."""
        return (self.world_size if self.local_loss else 1) / sum(rows)

    def _start(self, rows: Rows) -> int:
        """Return the column of the partner of this rank's first anchor."""
        return sum(rows[: self.rank]) if self.local_loss else 0

    def _ranks(self, rows: Rows) -> Ranks:
        own_times = self.world_size if self.convention == "exact" else 1
        return Ranks(self.transport, rows, self.local_loss, self.gather_with_grad, own_times)

    def _pairs(self, image_features: Tensor, text_features: Tensor, rows: Rows) -> Pairs:
        """Return anchors and gallery: of both directions with `local_loss`, else of the images alone."""
        everyone = gather_pair(
            image_features,
            text_features,
            rows,
            self.local_loss,
            self.gather_with_grad,
            self.convention,
            self.transport,
        )
        if self.world_size > 1 and self.local_loss:
            return [(image_features, everyone[1]), (text_features, everyone[0])]
        return [everyone]

    def _contrastive(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Scalar,
        logit_bias: Scalar | None,
        rows: Rows,
    ) -> Tensor:
        """Return the contrastive loss of checked features."""
        if overrides(self, ClipLoss, "get_logits", "get_ground_truth"):
            return self._contrastive_of_logits(
                self.get_logits(image_features, text_features, logit_scale, logit_bias), rows
            )
        d, dtype, device = image_features.shape[1], image_features.dtype, image_features.device
        sums = self._batch(rows, d, dtype, device).choose(self.implementation, self.tile_size)
        weight = self._row_weight(rows) / 2
        if sums.name != "dense" and self.world_size > 1:
            pair, shared = (image_features, text_features), self._ranks(rows)
            return weight * ranks.sum_symmetric(pair, logit_scale, logit_bias, shared, sums.tile, sums.form)
        pairs = self._pairs(image_features, text_features, rows)
        if len(pairs) == 2:
            start = self._start(rows)
            images, texts = (contrast.sum_infonce(*pair, logit_scale, logit_bias, start) for pair in pairs)
            total = images + texts
        else:
            total = sums.sum_symmetric(*pairs[0], logit_scale, logit_bias)
        return total * weight

    def _contrastive_of_logits(self, logits: tuple[Tensor, Tensor], rows: Rows) -> Tensor:
        """Return the contrastive loss of logits per image and per text, where a subclass makes them."""
        device, count = logits[0].device, logits[0].shape[0]
        if overrides(self, ClipLoss, "get_ground_truth"):
            labels = self.get_ground_truth(device, count)
        else:
            labels = torch.arange(count, device=device) + self._start(rows)
        images, texts = (contrast.sum_cross_entropy(each, labels) for each in logits)
        return (images + texts) * (self._row_weight(rows) / 2)


def overrides(loss: nn.Module, kind: type[nn.Module], *names: str) -> list[str]:
    """Return which methods of these names `loss`, or its class, has in place of those of `kind`."""
    return [
        name
        for name in names
        if name in loss.__dict__ or getattr(type(loss), name) is not getattr(kind, name)
    ]
