"""The planted defects: what is wrong, where it was seen, and the laws that must each catch it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Defect:
    """One defect."""

    target: str
    contract: str
    wrong: str
    source: str
    world_size: int
    caught_by: tuple[str, ...]
    options: tuple[tuple[str, Any], ...] = ()


VALUES, GRADS, COTANGENTS = "terms equal the oracle", "gradients equal the oracle", "cotangents pass through"
MEAN, SPLITS, FRESH = "mean over ranks equals single process", "splits agree", "used equals fresh"
FORMED, SECOND = "outputs well formed", "second derivatives travel"
OPEN_CLIP = "https://github.com/mlfoundations/open_clip"

LOCAL = (("local_loss", True), ("gather_with_grad", True))

DEFECTS = [
    Defect("NoLabelOffset", "clip", "labels of rank 1 start at 0 under local_loss", "solo-learn f25dc1f", 2, (VALUES, GRADS, MEAN), LOCAL),
    Defect("LabelsCachedByCount", "clip", "labels cached by their number, whatever the offset", f"{OPEN_CLIP}, loss.py", 3, (FRESH,), LOCAL),
    Defect("LabelsCachedUnderInference", "clip", "labels made under inference mode are kept for training", f"{OPEN_CLIP}, loss.py", 1, (FRESH,)),
    Defect("GradientOnce", "clip", "feature gradients are 1/W of the true ones", f"{OPEN_CLIP}/issues/616", 2, (GRADS, MEAN), (("local_loss", False), ("gather_with_grad", False))),
    Defect("TimesWorldSize", "clip", "the loss is multiplied by the world size besides a summing gather", "sentence-transformers 8c4331ec", 2, (VALUES, GRADS, MEAN)),
    Defect("LocalMean", "clip", "each rank divides by its own rows", "KNOWN_BUGS 30", 2, (VALUES, MEAN, SPLITS), LOCAL),
    Defect("OnlyImageToText", "clip", "texts never look for their images", "invented", 1, (VALUES, GRADS, "image and text swap")),
    Defect("DropsLastNegative", "clip", "one negative is masked", "invented", 1, (VALUES, "pairs permute")),
    Defect("RoundedLogits", "clip", "float32 logits pass through bfloat16", "invented", 1, (VALUES,)),
    Defect("ScalesInPlace", "clip", "features are altered in place", "jina openclip 25a73f2", 1, ("inputs unchanged",)),
    Defect("IgnoresCotangent", "clip", "the upstream gradient is taken for positive", "Liger-Kernel PR 1298", 1, (COTANGENTS,)),
    Defect("NotTwiceDifferentiable", "clip", "backward detaches", "invented", 1, ("twice differentiable",)),
    Defect("Noisy", "clip", "the last bit is random", "invented", 1, ("deterministic",)),
    Defect("GathersUndetached", "clip", "compiled, a collective carries gradient", f"{OPEN_CLIP}, loss.py, torch 2.13", 2, ("compiled equals eager",)),
    Defect("IntegerZero", "coca", "a term of weight 0 is an int64 tensor", f"{OPEN_CLIP}/pull/532", 1, (FORMED,)),
    Defect("MeanOfRankMeans", "coca", "the caption loss is a mean of rank means", "transformers issue 34191", 2, (VALUES, MEAN)),
    Defect("NaNForPadding", "coca", "a batch of padding costs NaN", f"{OPEN_CLIP}, loss.py", 1, (VALUES,)),
    Defect("PaddingLeaks", "coca", "the logits at padding leak into the last bits", "invented", 1, ("padding never matters",)),
    Defect("TeacherLearns", "distill", "the teacher gets gradients", "sentence-transformers PR 3880", 1, (FORMED, GRADS)),
    Defect("TeacherOfOtherRow", "distill", "teacher and student rows are mispaired on rank 1", "Chinese-CLIP", 2, (VALUES, MEAN)),
    Defect("ForgetsBias", "siglip", "the bias is accepted and not used", f"{OPEN_CLIP}/issues/1076", 1, (VALUES,)),
    Defect("HalfSum", "siglip", "sums pass through float16", f"{OPEN_CLIP}, loss.py", 1, (VALUES,)),
    Defect("SoftplusThreshold", "siglip", "torch's softplus drops exp(-x) beyond 20", "torch.nn.Softplus, threshold", 1, (VALUES,)),
    Defect("SkipsANeighbour", "siglip", "one rank's texts are scored twice, another's never", f"{OPEN_CLIP}/issues/742", 3, (VALUES, MEAN)),
    Defect("LocalCount", "siglip", "each rank divides by its own images", f"{OPEN_CLIP}, loss.py", 2, (VALUES, SPLITS)),
    Defect("gather_own_first", "gather", "own rows come first", "Chinese-CLIP", 2, (VALUES,)),
    Defect("gather_own_slice", "gather", "backward keeps this rank's gradient alone", "lightly 80fa5b5c", 2, (COTANGENTS,), (("gather_with_grad", True),)),
    Defect("exchange_wrong_way", "exchange", "left and right are confused", "invented", 3, (VALUES,)),
    Defect("exchange_once_differentiable", "exchange", "backward detaches", "invented", 2, (SECOND,)),
    Defect("exchange_contiguous_only", "exchange", "strided tensors are refused", f"{OPEN_CLIP}, loss.py", 2, (VALUES,)),
    Defect("exchange_swapped", "exchange", "between two ranks the received tensors change places", f"{OPEN_CLIP}, loss.py", 2, (VALUES,), (("bidirectional", True),)),
]  # fmt: skip

HOROVOD_DEFECTS = [
    Defect("AveragesInBackward", "clip", "the gather's backward averages where a sum is due", f"{OPEN_CLIP}, loss.py; KNOWN_BUGS 43", 2, (GRADS, MEAN), LOCAL),
    Defect("ChunksByWorldSize", "clip", "gathered rows are split into equal parts, whatever each rank holds", f"{OPEN_CLIP}, loss.py; KNOWN_BUGS 44", 2, (VALUES, MEAN), (("local_loss", False), ("gather_with_grad", False))),
]  # fmt: skip
"""Defects of what runs over Horovod, in `horovod.py`; caught in a Horovod world."""
