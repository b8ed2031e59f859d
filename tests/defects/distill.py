"""Defective losses with a teacher. What is wrong with each, and where it was seen, is in `index`."""

from typing import Any

import torch
from torch import Tensor

from .plain import Distill, Scalar, altered, four_ulps_up, widen


class Both(torch.autograd.Function):
    """Two terms, whose gradients are told to be one another's where one is missing."""

    @staticmethod
    def forward(ctx: Any, *terms: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        return tuple(one.clone() for one in terms)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        first, second = gradients
        return second if first is None else first, first if second is None else second


class TermsTogether(Distill):
    def output(self, terms: list[Tensor], output_dict: bool) -> Any:
        return super().output(list(Both.apply(*terms)), output_dict)


class TeacherLearns(Distill):
    def teach(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        return self.get_logits(*arguments)


class TeacherScaleLearns(Distill):
    def teach(self, image: Tensor, text: Tensor, scale: Scalar, bias: Any, rows: list[int]) -> Any:
        return self.get_logits(image.detach(), text.detach(), scale, bias, rows)


class LogitsFourUlpsUp(Distill):
    def product(self, anchors: Tensor, gallery: Tensor, scale: Scalar, bias: Scalar | None) -> Tensor:
        return four_ulps_up(super().product(anchors, gallery, scale, bias))


class TeacherOfOtherRow(Distill):
    def teach(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        per_image, per_text = super().teach(*arguments)
        return per_image.roll(self.rank, 0), per_text.roll(self.rank, 0)


class TeacherOwnFirst(Distill):
    def teach(self, image: Tensor, text: Tensor, scale: Scalar, bias: Any, rows: list[int]) -> Any:
        per_image, per_text = super().teach(image, text, scale, bias, rows)
        return per_image.roll(-sum(rows[: self.rank]), 1), per_text.roll(-sum(rows[: self.rank]), 1)


class TeacherTransposed(Distill):
    def teach(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        per_image, per_text = super().teach(*arguments)
        return per_text, per_image


class StudentScaleForTeacher(Distill):
    def get_logits(self, image: Tensor, text: Tensor, scale: Scalar, bias: Any, rows: list[int]) -> Any:
        if torch.is_grad_enabled() or not hasattr(self, "scale"):
            self.scale = scale
        return super().get_logits(image, text, self.scale, bias, rows)


class WidthOfStudent(Distill):
    def forward(self, image_features: Tensor, **kwargs: Any) -> Any:  # type: ignore[override]
        width = image_features.shape[1]
        for name in ("dist_image_features", "dist_text_features"):
            kwargs[name] = kwargs[name][:, :width]
        return super().forward(image_features, **kwargs)


class RolesSwapped(Distill):
    def distill(self, teacher: Tensor, student: Tensor) -> Tensor:
        return super().distill(student, teacher)


class Divergence(Distill):
    def distill(self, teacher: Tensor, student: Tensor) -> Tensor:
        return super().distill(teacher, student) - super().distill(teacher, teacher)


class StudentDetached(Distill):
    def distill(self, teacher: Tensor, student: Tensor) -> Tensor:
        return super().distill(teacher, student.detach())


class OneDirection(Distill):
    def teach(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        per_image, _ = super().teach(*arguments)
        return per_image, per_image


class MeanOverColumns(Distill):
    def distill(self, teacher: Tensor, student: Tensor) -> Tensor:
        return super().distill(teacher, student) / student.shape[1]


class DistillLocalMean(Distill):
    def distill(self, teacher: Tensor, student: Tensor) -> Tensor:
        total = super().distill(teacher, student)
        return total / len(student) * student.shape[1] / self.world_size if self.local else total


class LogOfSoftmax(Distill):
    def distill(self, teacher: Tensor, student: Tensor) -> Tensor:
        return -(widen(teacher).softmax(-1) * widen(student).softmax(-1).log()).sum()


class TeacherInBFloat16(Distill):
    def distill(self, teacher: Tensor, student: Tensor) -> Tensor:
        probability = widen(teacher).softmax(-1).bfloat16().to(widen(student).dtype)
        return -(probability * widen(student).log_softmax(-1)).sum()


class HardTeacher(Distill):
    def distill(self, teacher: Tensor, student: Tensor) -> Tensor:
        return self.cross_entropy(student, teacher.argmax(-1))


class SharpenedTeacher(Distill):
    def distill(self, teacher: Tensor, student: Tensor) -> Tensor:
        return super().distill(teacher * 1.01, student)


class GradientAsIfHard(Distill):
    def distill(self, teacher: Tensor, student: Tensor) -> Tensor:
        return super().distill(teacher, altered(student, lambda grad: grad.clamp(max=0)))


class DistillTimesWorld(Distill):
    def distill(self, teacher: Tensor, student: Tensor) -> Tensor:
        return super().distill(teacher, student) * self.world_size


class LeavesGradientsOff(Distill):
    def teach(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        torch.set_grad_enabled(False)
        return self.get_logits(*arguments)


class TurnsGradientsOn(Distill):
    def teach(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        torch.set_grad_enabled(False)
        taught = super().teach(*arguments)
        torch.set_grad_enabled(True)
        return taught


class TeacherCachedByAddress(Distill):
    def teach(self, image: Tensor, text: Tensor, scale: Any, bias: Any, rows: list[int]) -> Any:
        key = image.data_ptr(), text.data_ptr(), image.shape, text.shape
        if self.world_size > 1 or self.cached.get("of") != key:
            with torch.inference_mode(False), torch.no_grad():
                taught = super().teach(image, text, scale, bias, rows)
            self.cached.update({"of": key, "teacher": taught})  # type: ignore[dict-item]
        return self.cached["teacher"]


class TeacherCached(Distill):
    def teach(self, image: Tensor, text: Tensor, scale: Scalar, bias: Any, rows: list[int]) -> Any:
        if (key := tuple(rows)) not in self.cached:
            self.cached[key] = super().teach(image, text, scale, bias, rows)  # type: ignore[assignment]
        return self.cached[key]


class FrozenStudentNoTeacher(Distill):
    def distill(self, teacher: Tensor, student: Tensor) -> Tensor:
        return super().distill(teacher, student) if student.requires_grad else (student * 0).sum()
