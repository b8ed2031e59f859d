"""What is certified: one record a question put to a released loss, and what each is known to get wrong."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from verified_losses.properties.cases import SCALES, Case
from verified_losses.properties.contracts import Contract
from verified_losses.properties.contracts.clip import ClipContract
from verified_losses.properties.contracts.coca import CoCaContract
from verified_losses.properties.contracts.siglip import SigLipContract
from verified_losses.properties.names import DTYPES, FORMULAS, STRIDES
from verified_losses.properties.subjects import Subject

from .load import SITE

FULL = ("float64", "float32")
"""Precisions without the roundings of a half, for questions about something else."""
PLAIN = ("contiguous",)
LOCAL = (("local_loss", True), ("gather_with_grad", True))
GLOBAL = (("local_loss", False), ("gather_with_grad", True))
EXACT = ("basis", "grid")
"""Patterns whose products and sums are exact."""
OWN_ROWS = (("local_loss", False), ("gather_with_grad", False))
VALUES = ("terms equal the oracle",)
COMPILED = ("compiled equals eager",)
COMPILES = ("compiled keeps dtypes", "compiled equals eager")
DERIVED = ("terms equal the oracle", "gradients equal the oracle", "cotangents pass through")


class EveryRankHasTokens(CoCaContract):
    """No rank's captions are padding alone."""

    def cases(self, subject: Subject, world_size: int) -> st.SearchStrategy[Case]:
        return (
            super()
            .cases(subject, world_size)
            .filter(lambda case: all((given["labels"] != case.pad_id).any() for given in self.inputs(case)))
        )


class PositiveScales(ClipContract):
    """Scales that have a logarithm, where the subject's own parameter is one."""

    drawn: dict[str, Any] = {"scales": SCALES.filter(bool)}

    def cases(self, subject: Subject, world_size: int) -> st.SearchStrategy[Case]:
        # where nothing else rounds, it shows that the exponential of a logarithm does
        return (
            super()
            .cases(subject, world_size)
            .map(lambda case: dataclasses.replace(case, scale=1.0) if case.pattern in EXACT else case)
        )


class ManyRows(SigLipContract):
    """As many rows as image-text training has on one device."""

    def cases(self, subject: Subject, world_size: int) -> st.SearchStrategy[Case]:
        return (
            super()
            .cases(subject, world_size)
            .map(lambda case: dataclasses.replace(case, rows=(512,), width=min(case.width, 8)))
        )


@dataclass(frozen=True)
class Record:
    """One question put to one loss."""

    key: str
    package: str
    """As PyPI names it; the version is that of requirements.txt."""
    target: str
    """In peers/adapters: FILE:NAME. With a folder, PACKAGE/FILE:NAME: the package's own, as it is installed."""
    contract: str
    about: str
    """What is asked, in a few words."""
    worlds: str
    subject: dict[str, Any] = field(default_factory=dict)
    """What to pin: arguments of `Subject`."""
    only: tuple[str, ...] = ()
    """Properties to verify; all, if empty."""
    examples: int = 20
    narrower: Contract | None = None
    """The contract with cases that another defect does not hide in."""
    wrong: dict[str, str] = field(default_factory=dict)
    """The key of the defect behind each property that does not hold."""
    skip: tuple[str, ...] = ()
    """Properties that are left out: Triton's interpreter, which the adapter asks for, takes minutes for them."""

    @property
    def adapted(self) -> bool:
        """Whether an adapter calls it; else it is called in the form that an inspection finds."""
        return "/" not in self.target

    @property
    def held_to(self) -> str:
        """The contract's whole name: that of a kind is a formula's."""
        return FORMULAS.get(self.contract, self.contract)

    def bind(self) -> Subject:
        """Return the subject; by default with equal rows, no bias, plain strides and full precision."""
        file, name = self.target.split(":")
        pinned = {
            "even": True,
            "bias": False,
            "strides": PLAIN,
            "cotangent_strides": PLAIN,
            "dtypes": FULL,
        } | self.subject
        folder = "peers/adapters" if self.adapted else f"build/{SITE.name}"
        return Subject(f"{folder}/{file}.py:{name}", **pinned)


UNEVEN = {"even": False}
STRIDED = {"strides": STRIDES, "cotangent_strides": STRIDES}
HALVES = {"dtypes": DTYPES}

RECORDS = [
    # open_clip_torch
    Record("clip", "open_clip_torch", "open_clip:ClipLoss", "clip", "all flags, exact gradients", "1,proc:2,sim:2-4", wrong={"gradients equal the oracle": "open_clip mean", "cotangents pass through": "open_clip mean", "mean over ranks equals single process": "open_clip mean", "used equals fresh": "open_clip cache"}),
    Record("clip-upstream", "open_clip_torch", "open_clip:ClipLoss", "clip", "all flags, its own gradients", "1,proc:2,sim:2-4", {"conventions": ("open_clip",)}, wrong={"used equals fresh": "open_clip cache"}),
    Record("clip-compiled", "open_clip_torch", "open_clip:ClipLoss", "clip", "compiled, gradients to no rank", "proc:2", {"conventions": ("open_clip",), "options": OWN_ROWS}, COMPILED, 300, wrong={"compiled equals eager": "open_clip compiled"}),
    Record("clip-uneven", "open_clip_torch", "open_clip:ClipLoss", "clip", "unequal ranks", "proc:2", UNEVEN, VALUES, wrong={"terms equal the oracle": "open_clip uneven"}),
    Record("clip-strided", "open_clip_torch", "open_clip:ClipLoss", "clip", "strided features", "1,proc:2", STRIDED | {"options": GLOBAL}, DERIVED),
    Record("clip-halves", "open_clip_torch", "open_clip:ClipLoss", "clip", "half precision", "1,proc:2", HALVES | {"options": GLOBAL}, DERIVED),
    Record("clip-bias", "open_clip_torch", "open_clip:ClipLoss", "clip", "a bias", "1,proc:2", HALVES | {"options": GLOBAL, "bias": True}, DERIVED, wrong=dict.fromkeys(DERIVED, "open_clip bias")),
    Record("coca", "open_clip_torch", "open_clip:CoCaLoss", "coca", "padding", "1", {"conventions": ("open_clip",)}, wrong={"terms equal the oracle": "coca nan", "outputs well formed": "coca integer", "used equals fresh": "open_clip cache"}),
    Record("coca-ranks", "open_clip_torch", "open_clip:CoCaLoss", "coca", "padding on several ranks, each with tokens", "proc:2", {"options": GLOBAL}, ("mean over ranks equals single process",), narrower=EveryRankHasTokens(), wrong={"mean over ranks equals single process": "coca mean"}),
    Record("distill", "open_clip_torch", "open_clip:DistillClipLoss", "distill", "its own gradients", "1,proc:2", {"conventions": ("open_clip",), "options": GLOBAL}, wrong={"used equals fresh": "open_clip cache"}),
    Record("distill-exact", "open_clip_torch", "open_clip:DistillClipLoss", "distill", "exact gradients", "1", {"options": GLOBAL}, wrong={"outputs well formed": "distill teacher", "large batches equal the oracle": "distill teacher", "gradients equal the oracle": "distill teacher", "cotangents pass through": "distill teacher", "used equals fresh": "open_clip cache"}),
    Record("distill-bias", "open_clip_torch", "open_clip:DistillClipLoss", "distill", "a bias", "1", {"bias": True}, VALUES, wrong={"terms equal the oracle": "distill bias"}),
    Record("siglip", "open_clip_torch", "open_clip:SigLipLoss", "siglip", "all dist_impl", "1,proc:2,sim:2-4", {"bias": True}),
    Record("siglip-uneven", "open_clip_torch", "open_clip:SigLipLoss", "siglip", "unequal ranks", "proc:2", UNEVEN, VALUES, wrong={"terms equal the oracle": "siglip uneven"}),
    Record("siglip-strided", "open_clip_torch", "open_clip:SigLipLoss", "siglip", "strided features", "1,proc:2", STRIDED, DERIVED, wrong={"terms equal the oracle": "siglip strided", "gradients equal the oracle": "siglip strided", "cotangents pass through": "siglip strided"}),
    Record("siglip-halves", "open_clip_torch", "open_clip:SigLipLoss", "siglip", "half precision", "1", HALVES, DERIVED, 60, wrong={"terms equal the oracle": "siglip overflow"}),
    Record("siglip-many", "open_clip_torch", "open_clip:SigLipLoss", "siglip", "half precision, 512 rows", "1", {"dtypes": ("float16",)}, VALUES, 40, ManyRows(), wrong={"terms equal the oracle": "siglip overflow"}),
    Record("gather", "open_clip_torch", "open_clip:gather_features", "gather", "its own gradients", "proc:2,sim:2-4", {"conventions": ("open_clip",)}),
    Record("exchange", "open_clip_torch", "open_clip:neighbour_exchange_with_grad", "exchange", "one direction", "proc:2,proc:3,sim:2-4"),
    Record("exchange-strided", "open_clip_torch", "open_clip:neighbour_exchange_with_grad", "exchange", "strided gradients", "proc:2", STRIDED, ("cotangents pass through",), 5, wrong={"cotangents pass through": "exchange strided"}),
    Record("exchange-two", "open_clip_torch", "open_clip:neighbour_exchange_bidir_with_grad", "exchange", "both directions, two ranks", "proc:2", {"options": (("bidirectional", True),)}, VALUES, 5, wrong={"terms equal the oracle": "exchange swapped"}),
    Record("exchange-three", "open_clip_torch", "open_clip:neighbour_exchange_bidir_with_grad", "exchange", "both directions, three ranks", "proc:3", {"options": (("bidirectional", True),)}, VALUES, 5),
    # laion-clap
    Record("clap", "laion-clap", "laion_clap:ClipLoss", "clip", "all flags, exact gradients", "1,proc:2", wrong={"gradients equal the oracle": "clap mean", "cotangents pass through": "clap mean", "mean over ranks equals single process": "clap mean", "used equals fresh": "clap cache"}),
    Record("clap-upstream", "laion-clap", "laion_clap:ClipLoss", "clip", "all flags, open_clip's gradients", "1,proc:2", {"conventions": ("open_clip",)}, wrong={"used equals fresh": "clap cache"}),
    Record("clap-uneven", "laion-clap", "laion_clap:ClipLoss", "clip", "unequal ranks", "proc:2", UNEVEN, VALUES, wrong={"terms equal the oracle": "clap uneven"}),
    # torchmultimodal
    Record("tmm", "torchmultimodal-nightly", "torchmultimodal:ContrastiveLossWithTemperature", "clip", "gradients to all ranks", "1,proc:2,sim:2-4", {"options": LOCAL}, narrower=PositiveScales()),
    Record("tmm-none", "torchmultimodal-nightly", "torchmultimodal:ContrastiveLossWithTemperature", "clip", "gradients to no rank", "proc:2", {"options": (("local_loss", True), ("gather_with_grad", False))}, narrower=PositiveScales(), wrong={"compiled equals eager": "tmm compiled"}),
    Record("tmm-uneven", "torchmultimodal-nightly", "torchmultimodal:ContrastiveLossWithTemperature", "clip", "unequal ranks", "proc:2", UNEVEN | {"options": LOCAL}, VALUES, narrower=PositiveScales(), wrong={"terms equal the oracle": "tmm uneven"}),
    Record("tmm-strided", "torchmultimodal-nightly", "torchmultimodal:ContrastiveLossWithTemperature", "clip", "strided features", "1,proc:2", STRIDED | {"options": LOCAL}, DERIVED, narrower=PositiveScales()),
    Record("tmm-none-strided", "torchmultimodal-nightly", "torchmultimodal:ContrastiveLossWithTemperature", "clip", "strided features, gradients to no rank", "proc:2", STRIDED | {"options": (("local_loss", True), ("gather_with_grad", False))}, DERIVED, narrower=PositiveScales()),
    Record("tmm-halves", "torchmultimodal-nightly", "torchmultimodal:ContrastiveLossWithTemperature", "clip", "half precision", "1", HALVES, DERIVED, narrower=PositiveScales()),
    Record("tmm-gather", "torchmultimodal-nightly", "torchmultimodal:gather", "gather", "all kinds of gradient", "proc:2,sim:2-4", {"conventions": ("open_clip",)}),
    # lightly
    Record("lightly", "lightly", "lightly:NTXentLoss", "ntxent", "two views", "1,proc:2,sim:2-4", {"options": LOCAL}, wrong={"twice differentiable": "lightly second"}),
    Record("lightly-uneven", "lightly", "lightly:NTXentLoss", "ntxent", "unequal ranks", "proc:2", UNEVEN | {"options": LOCAL}, VALUES, wrong={"terms equal the oracle": "lightly uneven"}),
    Record("lightly-strided", "lightly", "lightly:NTXentLoss", "ntxent", "strided features", "1,proc:2", STRIDED | {"options": LOCAL}, DERIVED),
    Record("lightly-halves", "lightly", "lightly:NTXentLoss", "ntxent", "half precision", "1", HALVES, DERIVED),
    Record("lightly-gather", "lightly", "lightly:gather", "gather", "gradients to all ranks", "proc:2,sim:2-4", {"options": GLOBAL}, wrong={"second derivatives travel": "lightly second"}),
    # pytorch-metric-learning
    Record("pml", "pytorch-metric-learning", "pytorch_metric_learning:NTXentLoss", "ntxent", "two views", "1", wrong={"terms equal the oracle": "pml underflow", "cotangents pass through": "pml underflow"}),
    Record("pml-halves", "pytorch-metric-learning", "pytorch_metric_learning:NTXentLoss", "ntxent", "half precision", "1", {"dtypes": ("float16",)}, DERIVED, wrong={"terms equal the oracle": "pml underflow", "gradients equal the oracle": "pml underflow", "cotangents pass through": "pml underflow"}),
    Record("pml-ranks", "pytorch-metric-learning", "pytorch_metric_learning:Distributed", "ntxent", "several ranks", "proc:2,sim:2", {"options": OWN_ROWS, "dtypes": ("float64",)}, wrong={"terms equal the oracle": "pml value", "mean over ranks equals single process": "pml value", "some ranks may freeze inputs": "pml value", "compiled equals eager": "pml compiled"}),
    Record("pml-uneven", "pytorch-metric-learning", "pytorch_metric_learning:Distributed", "ntxent", "unequal ranks", "proc:2", UNEVEN | {"options": OWN_ROWS}, ("gradients equal the oracle",), wrong={"gradients equal the oracle": "pml uneven"}),
    # sentence-transformers
    Record("st", "sentence-transformers", "sentence_transformers:InfoNCE", "infonce", "queries to documents", "1,proc:2,sim:2-4", {"options": LOCAL}),
    Record("st-uneven", "sentence-transformers", "sentence_transformers:InfoNCE", "infonce", "unequal ranks", "proc:2", UNEVEN | {"options": LOCAL}, VALUES, wrong={"terms equal the oracle": "st uneven"}),
    Record("st-strided", "sentence-transformers", "sentence_transformers:InfoNCE", "infonce", "strided features", "1,proc:2", STRIDED | {"options": LOCAL}, DERIVED),
    Record("st-halves", "sentence-transformers", "sentence_transformers:InfoNCE", "infonce", "half precision", "1", HALVES, DERIVED),
    Record("st-clip", "sentence-transformers", "sentence_transformers:Symmetric", "clip", "both directions", "1,proc:2,sim:2-4", {"options": LOCAL}, narrower=PositiveScales()),
    Record("st-gather", "sentence-transformers", "sentence_transformers:gather", "gather", "its own gradients", "proc:2", {"conventions": ("open_clip",), "options": (("local_loss", False),)}),
    # info-nce-pytorch, infonce
    Record("info-nce", "info-nce-pytorch", "info_nce:InfoNCE", "infonce", "queries to keys", "1", STRIDED | HALVES),
    Record("infonce", "infonce", "infonce:TwoViews", "ntxent", "two views", "1", STRIDED | HALVES),
    Record("infonce-labels", "infonce", "infonce:TwoViewsByLabel", "ntxent", "two views by label", "1", {}, VALUES, wrong={"terms equal the oracle": "infonce diagonal"}),
    # inf-cl
    Record("inf-cl", "inf-cl", "inf_cl:RingLoss", "clip", "two ranks", "proc:2", {"options": LOCAL, "dtypes": ("float32",)}, ("terms equal the oracle", "gradients equal the oracle"), wrong={"terms equal the oracle": "inf_cl overflow", "gradients equal the oracle": "inf_cl scale"}),
    Record("inf-cl-second", "inf-cl", "inf_cl:RingLoss", "clip", "second derivatives", "proc:2", {"options": LOCAL, "dtypes": ("float32",)}, ("twice differentiable",), wrong={"twice differentiable": "inf_cl second"}),
    # Liger-Kernel
    # not in bfloat16, which the interpreter of Triton keeps as integers and multiplies as such
    Record("liger", "liger-kernel", "liger_kernel:LigerCrossEntropyLoss", "cross_entropy", "class labels", "1", {"dtypes": ("float32", "float16")}, examples=10, skip=("large logits equal the oracle",), wrong={"inputs unchanged": "liger overwrites", "twice differentiable": "liger second", "deterministic": "liger again"}),
    Record("liger-strided", "liger-kernel", "liger_kernel:LigerCrossEntropyLoss", "cross_entropy", "strided logits", "1", {"dtypes": ("float32",), "strides": STRIDES}, ("gradients equal the oracle", "cotangents pass through"), wrong={"gradients equal the oracle": "liger strided", "cotangents pass through": "liger strided"}),
    Record("liger-float64", "liger-kernel", "liger_kernel:LigerCrossEntropyLoss", "cross_entropy", "double precision", "1", {"dtypes": ("float64",)}, VALUES, wrong={"terms equal the oracle": "liger float64"}),
    # CoCa-pytorch, x-clip
    Record("coca-pytorch", "CoCa-pytorch", "coca_pytorch:gather", "gather", "exact gradients", "proc:2", {"options": OWN_ROWS}, wrong={"gradients equal the oracle": "coca_pytorch gather", "cotangents pass through": "coca_pytorch gather"}),
    Record("coca-pytorch-uneven", "CoCa-pytorch", "coca_pytorch:gather", "gather", "unequal ranks", "proc:2", UNEVEN | {"options": OWN_ROWS, "conventions": ("open_clip",)}),
    Record("x-clip", "x-clip", "x_clip:gather", "gather", "several ranks", "proc:2", {"options": OWN_ROWS, "conventions": ("open_clip",)}, VALUES, wrong={"terms equal the oracle": "x_clip names"}),
    # in the form that an inspection finds
    Record("simclr", "simclr", "simclr/modules/nt_xent:NT_Xent", "ntxent", "two views", "1,sim:2-4", {}, (*DERIVED, "mean over ranks equals single process"), wrong=dict.fromkeys((*DERIVED, "mean over ranks equals single process"), "simclr pairs")),
    # torch.compile does not take it, which is a limit
    Record("solo", "solo-learn", "solo/losses/simclr:simclr_loss_func", "ntxent", "two views", "1", STRIDED | HALVES, skip=COMPILES, wrong={"gradients equal the oracle": "solo underflow"}),
    Record("tevatron", "tevatron", "tevatron/loss:SimpleContrastiveLoss", "infonce", "queries to passages", "1", STRIDED | HALVES),
    Record("llm2vec", "llm2vec", "llm2vec:HardNegativeNLLLoss", "infonce", "queries to documents", "1", STRIDED | HALVES),
    Record("colpali", "colpali-engine", "colpali_engine/loss/bi_encoder_losses:BiEncoderLoss", "infonce", "queries to documents", "1", STRIDED | HALVES),
    Record("musiclm", "musiclm-pytorch", "musiclm_pytorch/musiclm_pytorch:SoftmaxContrastiveLearning", "clip", "both directions", "1", wrong=dict.fromkeys(DERIVED, "musiclm overflow")),
    Record("transformers", "transformers", "transformers/models/clip/modeling_clip:image_text_contrastive_loss", "clip", "both directions", "1", STRIDED | HALVES),
    Record("timm", "timm", "timm/loss/cross_entropy:LabelSmoothingCrossEntropy", "cross_entropy", "without smoothing", "1", STRIDED | HALVES | {"options": (("smoothing", 0.0),)}),
    # kinds beyond open_clip's
    Record("lightly-decoupled", "lightly", "lightly:DCLLoss", "decoupled", "without the positive below", "1", STRIDED | HALVES),
    Record("lightly-bank", "lightly", "lightly:MemoryBank", "held_queue", "a bank that it holds, several calls", "1", STRIDED),
    Record("pml-supcon", "pytorch-metric-learning", "pytorch_metric_learning:SupConLoss", "supcon", "several positives by label", "1", wrong=dict.fromkeys(DERIVED[1:], "pml one label")),
    Record("pml-triplets", "pytorch-metric-learning", "pytorch_metric_learning:Triplets", "triplet", "squared distances", "1", {}, DERIVED),
    Record("info-nce-negatives", "info-nce-pytorch", "info_nce:negatives", "queue", "given negatives", "1", STRIDED | HALVES),
    Record("timm-smoothed", "timm", "timm/loss/cross_entropy:LabelSmoothingCrossEntropy", "smoothed", "with smoothing", "1", STRIDED | HALVES),
    Record("siglip-kernel", "siglip-kernel", "siglip_kernel/reference:siglip_loss_reference", "siglip", "its reference", "1"),
    Record("memeff", "memeff", "memeff/clip_loss:MemoryEfficientCLIPLoss", "clip", "both directions, its kernels interpreted", "1", {"interpret": True, "widths": (16, 32), "dtypes": ("float32", "bfloat16", "float16"), "options": (("stable", False),)}, examples=10, wrong={"twice differentiable": "memeff second"}),
    Record("bolts", "lightning-bolts", "pl_bolts/losses/self_supervised_learning:nt_xent_loss", "ntxent", "two views of unit length", "1", STRIDED | {"features": "unit"}, wrong=dict.fromkeys(DERIVED[1:], "bolts overflow")),
    # vissl, FlagEmbedding
    Record("vissl", "vissl", "vissl:SimclrInfoNCELoss", "ntxent", "two views", "1,proc:2,sim:2-4", {"options": LOCAL}, wrong=dict.fromkeys((*DERIVED, "mean over ranks equals single process"), "vissl overflow") | {"twice differentiable": "vissl second"}),
    Record("flag", "FlagEmbedding", "flag_embedding:BiEncoderOnlyEmbedderModel", "infonce", "queries to passages", "1,proc:2,sim:2-4", {"options": OWN_ROWS, "conventions": ("open_clip",)}, wrong={"compiled equals eager": "flag compiled"}),
]  # fmt: skip
