"""What is certified: one record a question put to a released loss, and what each is known to get wrong."""

from dataclasses import dataclass, field
from typing import Any

from properties.cases import DTYPES, STRIDES
from properties.subjects import Subject

FULL = ("float64", "float32")
"""Precisions without the roundings of a half, for questions about something else."""
PLAIN = ("contiguous",)
LOCAL = (("local_loss", True), ("gather_with_grad", True))
GLOBAL = (("local_loss", False), ("gather_with_grad", True))
OWN_ROWS = (("local_loss", False), ("gather_with_grad", False))
VALUES = ("terms equal the oracle",)
COMPILED = ("compiled equals eager",)
DERIVED = ("terms equal the oracle", "gradients equal the oracle", "cotangents pass through")


@dataclass(frozen=True)
class Record:
    """One question put to one loss."""

    key: str
    package: str
    """As PyPI names it; the version is that of requirements.txt."""
    target: str
    """In peers/adapters: FILE:NAME."""
    contract: str
    about: str
    """What is asked, in a few words."""
    worlds: str
    subject: dict[str, Any] = field(default_factory=dict)
    """What to pin: arguments of `Subject`."""
    only: tuple[str, ...] = ()
    """Properties to verify; all, if empty."""
    examples: int = 20
    wrong: dict[str, str] = field(default_factory=dict)
    """The key of the defect behind each property that does not hold."""

    def bind(self) -> Subject:
        """Return the subject; by default with equal rows, no bias, plain strides and full precision."""
        file, name = self.target.split(":")
        pinned = {"even": True, "bias": False, "strides": PLAIN, "dtypes": FULL} | self.subject
        return Subject(f"peers/adapters/{file}.py:{name}", **pinned)


UNEVEN = {"even": False}
STRIDED = {"strides": STRIDES}
HALVES = {"dtypes": DTYPES}

RECORDS = [
    # open_clip_torch
    Record("clip", "open_clip_torch", "open_clip:ClipLoss", "clip", "all flags, exact gradients", "1,proc:2,sim:2-4"),
    Record("clip-upstream", "open_clip_torch", "open_clip:ClipLoss", "clip", "all flags, its own gradients", "1,proc:2,sim:2-4", {"conventions": ("open_clip",)}),
    Record("clip-compiled", "open_clip_torch", "open_clip:ClipLoss", "clip", "compiled, gradients to no rank", "proc:2", {"conventions": ("open_clip",), "options": OWN_ROWS}, COMPILED),
    Record("clip-uneven", "open_clip_torch", "open_clip:ClipLoss", "clip", "unequal ranks", "proc:2", UNEVEN, VALUES),
    Record("clip-strided", "open_clip_torch", "open_clip:ClipLoss", "clip", "strided features", "1,proc:2", STRIDED | {"options": GLOBAL}, DERIVED),
    Record("clip-halves", "open_clip_torch", "open_clip:ClipLoss", "clip", "half precision", "1,proc:2", HALVES | {"options": GLOBAL}, DERIVED),
    Record("clip-bias", "open_clip_torch", "open_clip:ClipLoss", "clip", "a bias", "1,proc:2", HALVES | {"options": GLOBAL, "bias": True}, DERIVED),
    Record("coca", "open_clip_torch", "open_clip:CoCaLoss", "coca", "padding", "1", {"conventions": ("open_clip",)}),
    Record("coca-ranks", "open_clip_torch", "open_clip:CoCaLoss", "coca", "padding on several ranks", "proc:2", {"options": GLOBAL}, ("mean over ranks equals single process",)),
    Record("coca-bias", "open_clip_torch", "open_clip:CoCaLoss", "coca", "a bias", "1", {"bias": True}, VALUES),
    Record("distill", "open_clip_torch", "open_clip:DistillClipLoss", "distill", "its own gradients", "1,proc:2", {"conventions": ("open_clip",), "options": GLOBAL}),
    Record("distill-exact", "open_clip_torch", "open_clip:DistillClipLoss", "distill", "exact gradients", "1", {"options": GLOBAL}),
    Record("distill-bias", "open_clip_torch", "open_clip:DistillClipLoss", "distill", "a bias", "1", {"bias": True}, VALUES),
    Record("siglip", "open_clip_torch", "open_clip:SigLipLoss", "siglip", "all dist_impl", "1,proc:2,sim:2-4", {"bias": True}),
    Record("siglip-uneven", "open_clip_torch", "open_clip:SigLipLoss", "siglip", "unequal ranks", "proc:2", UNEVEN, VALUES),
    Record("siglip-strided", "open_clip_torch", "open_clip:SigLipLoss", "siglip", "strided features", "1,proc:2", STRIDED, DERIVED),
    Record("siglip-halves", "open_clip_torch", "open_clip:SigLipLoss", "siglip", "half precision", "1", {"dtypes": ("bfloat16", "float16")}, VALUES, 300),
    Record("gather", "open_clip_torch", "open_clip:gather_features", "gather", "its own gradients", "proc:2,sim:2-4", {"conventions": ("open_clip",)}),
    Record("exchange", "open_clip_torch", "open_clip:neighbour_exchange_with_grad", "exchange", "one direction", "proc:2,proc:3,sim:2-4"),
    Record("exchange-strided", "open_clip_torch", "open_clip:neighbour_exchange_with_grad", "exchange", "strided gradients", "proc:2", STRIDED, ("cotangents pass through",), 5),
    Record("exchange-two", "open_clip_torch", "open_clip:neighbour_exchange_bidir_with_grad", "exchange", "both directions, two ranks", "proc:2", {"options": (("bidirectional", True),)}, VALUES, 5),
    Record("exchange-three", "open_clip_torch", "open_clip:neighbour_exchange_bidir_with_grad", "exchange", "both directions, three ranks", "proc:3", {"options": (("bidirectional", True),)}, VALUES, 5),
    # laion-clap
    Record("clap", "laion-clap", "laion_clap:ClipLoss", "clip", "all flags, exact gradients", "1,proc:2"),
    Record("clap-upstream", "laion-clap", "laion_clap:ClipLoss", "clip", "all flags, open_clip's gradients", "1,proc:2", {"conventions": ("open_clip",)}),
    Record("clap-uneven", "laion-clap", "laion_clap:ClipLoss", "clip", "unequal ranks", "proc:2", UNEVEN, VALUES),
    # torchmultimodal
    Record("tmm", "torchmultimodal-nightly", "torchmultimodal:ContrastiveLossWithTemperature", "clip", "gradients to all ranks", "1,proc:2,sim:2-4", {"options": LOCAL}),
    Record("tmm-none", "torchmultimodal-nightly", "torchmultimodal:ContrastiveLossWithTemperature", "clip", "gradients to no rank", "proc:2", {"options": (("local_loss", True), ("gather_with_grad", False))}),
    Record("tmm-uneven", "torchmultimodal-nightly", "torchmultimodal:ContrastiveLossWithTemperature", "clip", "unequal ranks", "proc:2", UNEVEN | {"options": LOCAL}, VALUES),
    Record("tmm-strided", "torchmultimodal-nightly", "torchmultimodal:ContrastiveLossWithTemperature", "clip", "strided features", "1,proc:2", STRIDED | {"options": LOCAL}, DERIVED),
    Record("tmm-none-strided", "torchmultimodal-nightly", "torchmultimodal:ContrastiveLossWithTemperature", "clip", "strided features, gradients to no rank", "proc:2", STRIDED | {"options": (("local_loss", True), ("gather_with_grad", False))}, DERIVED),
    Record("tmm-halves", "torchmultimodal-nightly", "torchmultimodal:ContrastiveLossWithTemperature", "clip", "half precision", "1", HALVES, DERIVED),
    Record("tmm-gather", "torchmultimodal-nightly", "torchmultimodal:gather", "gather", "all kinds of gradient", "proc:2,sim:2-4", {"conventions": ("open_clip",)}),
    # lightly
    Record("lightly", "lightly", "lightly:NTXentLoss", "ntxent", "two views", "1,proc:2,sim:2-4", {"options": LOCAL}),
    Record("lightly-uneven", "lightly", "lightly:NTXentLoss", "ntxent", "unequal ranks", "proc:2", UNEVEN | {"options": LOCAL}, VALUES),
    Record("lightly-strided", "lightly", "lightly:NTXentLoss", "ntxent", "strided features", "1,proc:2", STRIDED | {"options": LOCAL}, DERIVED),
    Record("lightly-halves", "lightly", "lightly:NTXentLoss", "ntxent", "half precision", "1", HALVES, DERIVED),
    Record("lightly-gather", "lightly", "lightly:gather", "gather", "gradients to all ranks", "proc:2,sim:2-4", {"options": GLOBAL}),
    # pytorch-metric-learning
    Record("pml", "pytorch-metric-learning", "pytorch_metric_learning:NTXentLoss", "ntxent", "two views", "1"),
    Record("pml-halves", "pytorch-metric-learning", "pytorch_metric_learning:NTXentLoss", "ntxent", "half precision", "1", {"dtypes": ("bfloat16", "float16")}, DERIVED),
    Record("pml-ranks", "pytorch-metric-learning", "pytorch_metric_learning:Distributed", "ntxent", "several ranks", "proc:2,sim:2-4", {"options": OWN_ROWS, "dtypes": ("float64",)}),
    Record("pml-uneven", "pytorch-metric-learning", "pytorch_metric_learning:Distributed", "ntxent", "unequal ranks", "proc:2", UNEVEN | {"options": OWN_ROWS}, VALUES),
    # sentence-transformers
    Record("st", "sentence-transformers", "sentence_transformers:InfoNCE", "infonce", "queries to documents", "1,proc:2,sim:2-4", {"options": LOCAL}),
    Record("st-uneven", "sentence-transformers", "sentence_transformers:InfoNCE", "infonce", "unequal ranks", "proc:2", UNEVEN | {"options": LOCAL}, VALUES),
    Record("st-strided", "sentence-transformers", "sentence_transformers:InfoNCE", "infonce", "strided features", "1,proc:2", STRIDED | {"options": LOCAL}, DERIVED),
    Record("st-halves", "sentence-transformers", "sentence_transformers:InfoNCE", "infonce", "half precision", "1", HALVES, DERIVED),
    Record("st-clip", "sentence-transformers", "sentence_transformers:Symmetric", "clip", "both directions", "1,proc:2,sim:2-4", {"options": LOCAL}),
    Record("st-gather", "sentence-transformers", "sentence_transformers:gather", "gather", "its own gradients", "proc:2", {"conventions": ("open_clip",), "options": (("local_loss", False),)}),
    # info-nce-pytorch, infonce
    Record("info-nce", "info-nce-pytorch", "info_nce:InfoNCE", "infonce", "queries to keys", "1", STRIDED | HALVES),
    Record("infonce", "infonce", "infonce:TwoViews", "ntxent", "two views", "1", STRIDED | HALVES),
    Record("infonce-labels", "infonce", "infonce:TwoViewsByLabel", "ntxent", "two views by label", "1", {}, VALUES),
    # inf-cl
    Record("inf-cl", "inf-cl", "inf_cl:RingLoss", "clip", "two ranks", "proc:2", {"options": LOCAL, "dtypes": ("float32",)}),
    Record("inf-cl-one", "inf-cl", "inf_cl:RingLoss", "clip", "one process", "1", {"dtypes": ("float32",)}, DERIVED),
    # Liger-Kernel
    Record("liger", "liger-kernel", "liger_kernel:LigerCrossEntropyLoss", "cross_entropy", "class labels", "1", {"dtypes": ("float32", "bfloat16", "float16"), "strides": STRIDES}),
    Record("liger-float64", "liger-kernel", "liger_kernel:LigerCrossEntropyLoss", "cross_entropy", "double precision", "1", {"dtypes": ("float64",)}, VALUES),
    # CoCa-pytorch, x-clip
    Record("coca-pytorch", "CoCa-pytorch", "coca_pytorch:gather", "gather", "exact gradients", "proc:2", {"options": OWN_ROWS}),
    Record("coca-pytorch-uneven", "CoCa-pytorch", "coca_pytorch:gather", "gather", "unequal ranks", "proc:2", UNEVEN | {"options": OWN_ROWS, "conventions": ("open_clip",)}),
    Record("x-clip", "x-clip", "x_clip:gather", "gather", "several ranks", "proc:2", {"options": OWN_ROWS, "conventions": ("open_clip",)}, VALUES),
]  # fmt: skip
