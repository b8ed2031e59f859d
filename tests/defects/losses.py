"""Defective losses, a few lines each. What is wrong with each, and where it was seen, is in `index`."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

import verified_losses as good
from verified_losses.exchange import neighbour_exchange_bidir_with_grad, neighbour_exchange_with_grad


class NoLabelOffset(good.ClipLoss):
    def get_ground_truth(self, device: torch.device, num_logits: int) -> Tensor:
        return torch.arange(num_logits, device=device)


class LabelsCachedByCount(good.ClipLoss):
    def get_ground_truth(self, device: torch.device, num_logits: int) -> Tensor:
        key: Any = (num_logits,)
        if key not in self.labels:
            self.labels[key] = super().get_ground_truth(device, num_logits)
        return self.labels[key]


class LabelsCachedUnderInference(good.ClipLoss):
    def get_ground_truth(self, device: torch.device, num_logits: int) -> Tensor:
        key: Any = (num_logits, sum((self._agreed or ())[: self.rank]))
        if key not in self.labels:
            self.labels[key] = torch.arange(num_logits, device=device) + (key[1] if self.local_loss else 0)
        return self.labels[key]


class GradientOnce(good.ClipLoss):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "convention": "open_clip"})


class TimesWorldSize(good.ClipLoss):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        if isinstance(output, dict):
            return {name: term * self.world_size for name, term in output.items()}
        return output * self.world_size


class LocalMean(good.ClipLoss):
    def _weight(self, logits: Tensor) -> float:
        return 1 / logits.shape[0]


class OnlyImageToText(good.ClipLoss):
    def _contrastive(self, logits_per_image: Tensor, logits_per_text: Tensor) -> Tensor:
        return super()._contrastive(logits_per_image, logits_per_image)


class DropsLastNegative(good.ClipLoss):
    def _contrastive(self, logits_per_image: Tensor, logits_per_text: Tensor) -> Tensor:
        n = logits_per_image.shape[1]
        if n < 2:
            return super()._contrastive(logits_per_image, logits_per_text)
        mask = torch.zeros_like(logits_per_image)
        mask[0, n - 1] = 30
        return super()._contrastive(logits_per_image - mask, logits_per_text)


class RoundedLogits(good.ClipLoss):
    def get_logits(self, *args: Any, **kwargs: Any) -> Any:
        return tuple(z.bfloat16().to(z.dtype) for z in super().get_logits(*args, **kwargs))


class ScalesInPlace(good.ClipLoss):
    def forward(self, image_features: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            image_features.mul_(1.5).div_(1.5).add_(2.0**-8)
        return super().forward(image_features, *args, **kwargs)


class IgnoresCotangent(good.ClipLoss):
    def forward(self, image_features: Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().forward(_UnitCotangent.apply(image_features), *args, **kwargs)


class _UnitCotangent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # as if the gradient had been made in forward for an upstream gradient of one sign
        return grad.sum().sign().clamp(min=0.5) * grad


class NotTwiceDifferentiable(good.ClipLoss):
    def forward(self, image_features: Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().forward(_GradDetached.apply(image_features), *args, **kwargs)


class _GradDetached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.detach()


class Noisy(good.ClipLoss):
    def _contrastive(self, logits_per_image: Tensor, logits_per_text: Tensor) -> Tensor:
        loss = super()._contrastive(logits_per_image, logits_per_text)
        return loss * (1 + torch.finfo(loss.dtype).eps * torch.randint(0, 3, ()).item())


class GathersUndetached(good.ClipLoss):
    """Compiled, its collective carries gradient."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "gather_with_grad": False, "local_loss": False})

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Any,
        logit_bias: Any = None,
        output_dict: bool = False,
    ) -> Any:
        if self.world_size == 1:
            return super().forward(image_features, text_features, logit_scale, logit_bias, output_dict)
        gathered = []
        for features in (image_features, text_features):
            everyone = [torch.zeros_like(features) for _ in range(self.world_size)]
            dist.all_gather(everyone, features.contiguous())
            times = self.world_size
            own = everyone[self.rank].detach() + times * (features - features.detach())
            parts = [own if rank == self.rank else other for rank, other in enumerate(everyone)]
            gathered.append(torch.cat(parts))
        single = good.ClipLoss()
        return single(*gathered, logit_scale, logit_bias, output_dict)


class IntegerZero(good.CoCaLoss):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        if self.clip_loss_weight:
            return output
        if isinstance(output, dict):
            return {**output, "contrastive_loss": torch.tensor(0)}
        return torch.tensor(0), output[1]


class MeanOfRankMeans(good.CoCaLoss):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        if not self.caption_loss_weight:
            return output
        labels, logits = kwargs["labels"], kwargs["logits"]
        tokens = (labels != self.pad_id).sum().clamp(min=1)
        total = F.cross_entropy(
            logits.flatten(0, 1).to(output_dtype(logits)),
            labels.flatten(),
            ignore_index=self.pad_id,
            reduction="sum",
        )
        caption = self.caption_loss_weight * total / tokens
        return {**output, "caption_loss": caption} if isinstance(output, dict) else (output[0], caption)


def output_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


class NaNForPadding(good.CoCaLoss):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        if (kwargs["labels"] != self.pad_id).any() or not self.caption_loss_weight:
            return output
        nan = kwargs["logits"].sum() * torch.nan
        return {**output, "caption_loss": nan} if isinstance(output, dict) else (output[0], nan)


class PaddingLeaks(good.CoCaLoss):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        leak = 1e-30 * kwargs["logits"].square().mean().to(output_dtype(kwargs["logits"]))
        if isinstance(output, dict):
            return {**output, "caption_loss": output["caption_loss"] + leak}
        return output[0], output[1] + leak


class TeacherLearns(good.DistillClipLoss):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "convention": "open_clip"})


class TeacherOfOtherRow(good.DistillClipLoss):
    def _sum_dist_loss(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        return super()._sum_dist_loss(teacher_logits.roll(self.rank, 0), student_logits)


class ForgetsBias(good.SigLipLoss):
    def get_logits(self, image: Tensor, text: Tensor, scale: Any, bias: Any = None) -> Tensor:
        return super().get_logits(image, text, scale) + (0 * bias if bias is not None else 0)


class HalfSum(good.SigLipLoss):
    def _sum(self, *args: Any, **kwargs: Any) -> Tensor:
        total = super()._sum(*args, **kwargs)
        return total.half().to(total.dtype)


class SoftplusThreshold(good.SigLipLoss):
    def _sum(self, image: Tensor, text: Tensor, scale: Any, bias: Any, negative_only: bool = False) -> Tensor:
        logits = self.get_logits(image, text, scale, bias)
        logits = logits.to(output_dtype(logits))
        labels = self.get_ground_truth(logits.device, logits.dtype, len(text), negative_only)
        if labels.shape != logits.shape:
            labels = -torch.ones_like(logits)
        return F.softplus(-labels * logits).sum()


class SkipsANeighbour(good.SigLipLoss):
    def _texts(self, text_features: Tensor, rows: Any) -> list[Tensor]:
        texts = super()._texts(text_features, rows)
        return [*texts[:-1], texts[0] + 0 * texts[-1].sum()] if len(texts) > 1 else texts


class LocalCount(good.SigLipLoss):
    def forward(self, image_features: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(image_features, *args, **kwargs)
        count = torch.tensor(float(len(image_features)))
        if self.world_size > 1:
            dist.all_reduce(count)
        factor = count.item() / self.world_size / len(image_features)
        return {k: v * factor for k, v in output.items()} if isinstance(output, dict) else output * factor


def gather_own_first(
    image_features: Tensor, text_features: Tensor, rank: int, world_size: int, **flags: Any
) -> Any:
    everyone = good.gather_features(image_features, text_features, rank=rank, world_size=world_size, **flags)
    n = len(everyone[0]) // world_size
    return tuple(features.roll(-n * rank, 0) for features in everyone)


class _OwnSlice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rank: int, world_size: int) -> Tensor:
        ctx.rank, ctx.world_size = rank, world_size
        everyone = [torch.zeros_like(tensor) for _ in range(world_size)]
        dist.all_gather(everyone, tensor.contiguous())
        return torch.cat(everyone)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.chunk(ctx.world_size)[ctx.rank], None, None


def gather_own_slice(
    image_features: Tensor, text_features: Tensor, rank: int, world_size: int, **flags: Any
) -> Any:
    if world_size == 1 or not flags.get("gather_with_grad"):
        return good.gather_features(image_features, text_features, rank=rank, world_size=world_size, **flags)
    return tuple(_OwnSlice.apply(t, rank, world_size) for t in (image_features, text_features))


def exchange_wrong_way(from_rank: int, to_rank: int, tensor: Tensor) -> Tensor:
    return neighbour_exchange_with_grad(to_rank, from_rank, tensor)


class _Detached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, from_rank: int, to_rank: int, tensor: Tensor) -> Tensor:
        ctx.ranks = from_rank, to_rank
        return good.neighbour_exchange(from_rank, to_rank, tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        back = good.neighbour_exchange(ctx.ranks[1], ctx.ranks[0], grad)
        return None, None, back.detach() + 0 * grad.sum()


def exchange_once_differentiable(from_rank: int, to_rank: int, tensor: Tensor) -> Tensor:
    return _Detached.apply(from_rank, to_rank, tensor)


def exchange_contiguous_only(from_rank: int, to_rank: int, tensor: Tensor) -> Tensor:
    if not tensor.is_contiguous():
        raise ValueError("tensors must be contiguous")
    return neighbour_exchange_with_grad(from_rank, to_rank, tensor)


def exchange_swapped(left: int, right: int, to_left: Tensor, to_right: Tensor) -> tuple[Tensor, Tensor]:
    from_right, from_left = neighbour_exchange_bidir_with_grad(left, right, to_left, to_right)
    return (from_left, from_right) if left == right else (from_right, from_left)
