"""The planted defects and the right variants: what is wrong, where it was seen, and what must catch it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from verified_losses.properties.cases import DTYPES, Case
from verified_losses.properties.names import Features, Held, Scales
from verified_losses.properties.subjects import Subject

TERMS, GRADS, COTANGENTS = "terms equal the oracle", "gradients equal the oracle", "cotangents pass through"
MEAN, FRESH = "mean over ranks equals single process", "used equals fresh"
FORMED, SECOND, TWICE = "outputs well formed", "second derivatives travel", "twice differentiable"
TRACE, COMPILED, SILENT = "leaves no trace", "compiled equals eager", "backward is silent"
NARROWED, INDUCTOR = "compiled keeps dtypes", "inductor equals the oracle"
INPUTS, SAME, PADDING = "inputs unchanged", "deterministic", "padding never matters"
STREAMS, GRAPHS = "other streams equal the default", "replayed equals eager"
WAITS, MEMORY = "never waits for the device", "memory is returned"
STATED = "takes no more memory than stated"
EVAL, LIVE, OWNED = "eval equals train", "two graphs at once", "owned parameters get gradients"
PAIRS, LOGITS = "large batches equal the oracle", "large logits equal the oracle"
NUMBERS, NEGATIVE = "NaN spreads as the formula says", "negative numbers equal the oracle"
TO_BFLOAT16, TO_FLOAT16 = (f"{one} autocast equals the oracle" for one in ("bfloat16", "float16"))
COPIED = "copies are the same"
FUNC, MAPPED = "torch.func equals autograd", "scales may be mapped"
SUBCLASSED, REPLICATED = "subclasses equal tensors", "DTensors equal tensors"
GROUP, FREEZING = "a group is a world of its own", "some ranks may freeze inputs"
LABELS, OVERFLOW = "wrong labels are named", "sizes beyond an index are named"


OPEN_CLIP = "https://github.com/mlfoundations/open_clip"
LOSS = f"{OPEN_CLIP}/blob/v3.3.0/src/open_clip/loss.py"
MAIN_LOSS = f"{OPEN_CLIP}/blob/89fb801f1e6087880e951fc8354b8a2077b79c6d/src/open_clip/loss.py"
"""With what came after the release."""
CHINESE_CLIP = "https://github.com/OFA-Sys/Chinese-CLIP/blob/846e630d38d2c7c521aba6c88e731b27ca7b7cc0/cn_clip/training/train.py"
DECLIP = "https://github.com/Sense-GVT/DeCLIP/blob/f7bc0948ef9be2a8f3c9b5d9ed36d4c80268ae89/prototype/loss_functions/nt_xent.py"
INF_CL = "https://github.com/DAMO-NLP-SG/Inf-CLIP/blob/d9f2833b3753ab1342db46666523c6621012fbf6/inf_cl"
JINA = "https://github.com/jina-ai/jina-openclip"
LIGER = "https://github.com/linkedin/Liger-Kernel"
LIGHTLY = "https://github.com/lightly-ai/lightly"
MPI_OPS = "https://github.com/horovod/horovod/blob/v0.28.1/horovod/torch/mpi_ops.py"
SENTENCE = "https://github.com/huggingface/sentence-transformers"
STABLE_PRETRAINING = "https://github.com/galilai-group/stable-pretraining"
TORCH = "https://github.com/pytorch/pytorch"

LOCAL = (("local_loss", True), ("gather_with_grad", True))

LOGARITHM: Held = (("logit_scale", "exp"),)

SIZES: dict[str, Callable[[Case], int]] = {
    "rows": lambda case: sum(case.rows),
    "rows of a rank": lambda case: max(case.rows),
    "width": lambda case: case.width,
    "vocabulary": lambda case: case.vocabulary,
}


@dataclass(frozen=True)
class Planted:
    """A defect, or, where nothing is `wrong`, a right variant."""

    contract: str
    name: str
    wrong: str = ""
    source: str = ""
    """Links to where it was seen, or a heading of peers/FINDINGS.md; empty where it is our own."""
    caught_by: tuple[str, ...] = ()
    """Properties that must each catch it, in `world`."""
    world: str = "1"
    options: tuple[tuple[str, Any], ...] = ()
    raises: str = ""
    """What the error says, where it may raise, and not just be wrong."""
    smallest: tuple[str, int] | None = None
    """Which of `SIZES` the defect depends on, and from what size on it shows."""
    seeds: float = 1.0
    """With how many of twenty seeds, as a share, the default budget must catch it; 1 is all that are tried."""
    even: bool = False
    """It is held to equally many rows on every rank alone."""
    skips: tuple[str, ...] = ()
    """Properties that say nothing about it."""
    dtypes: tuple[str, ...] = DTYPES
    """What it is held to."""
    features: Features = ""
    held: Held = ()
    scales: Scales = "any"
    """Which it takes, where it holds nothing else."""
    asked: tuple[str, ...] = ()
    """The properties that a right variant is asked about in the tests; all, if there are none."""
    strict: bool = False
    """What it does not support is a defect."""
    stated: bool = False
    """It is held to what docs/inputs.md says of inputs that nobody should send."""
    empty_ranks: bool = False
    """It is held to ranks without rows, too."""
    module: str = ""
    """Where it is, if not in the module named like the contract."""

    @property
    def id(self) -> str:
        """Unique among all."""
        return f"{self.module or self.contract}:{self.name}"

    @property
    def subject(self) -> Subject:
        """As a stranger's loss is certified."""
        target = f"tests.defects.{self.module or self.contract}:{self.name}"
        return Subject(
            target,
            even=self.even,
            dtypes=self.dtypes,
            options=self.options,
            features=self.features,
            held=self.held,
            scales="positive" if self.held else self.scales,
            empty_ranks=self.empty_ranks,
            stated=self.stated,
            strict=self.strict,
        )

    def is_smallest(self, case: Case) -> bool:
        """Whether no smaller case shows the defect."""
        return self.smallest is None or SIZES[self.smallest[0]](case) == self.smallest[1]

    def explains(self, reason: str) -> bool:
        """Whether it is falsified for what is wrong with it, not because it raises by accident."""
        return reason.startswith("Falsified") or bool(self.raises and self.raises in reason)


DEFECTS = [
    Planted("clip", "NoLabelOffset", "labels of every rank start at 0 under local_loss", f"https://github.com/vturrisi/solo-learn/commit/f25dc1f; {STABLE_PRETRAINING}/pull/409", (TERMS,), "sim:2-8"),
    Planted("clip", "OffsetForEqualRows", "the label offset is rank times this rank's rows", LOSS, (TERMS,), "sim:2-8", raises="out of bounds"),
    Planted("clip", "SortedBySize", "rows that were gathered by size are put back by the permutation, not by its inverse", "", (TERMS,), "sim:2-8", options=LOCAL),
    Planted("clip", "ColumnsOf512", "columns beyond 512 are left out", "", (TERMS,), smallest=("width", 513)),
    Planted("clip", "LastRankUnshifted", "the last rank's labels start at 0", "", (TERMS,), "sim:2-8"),
    Planted("clip", "OffsetBeyondFour", "the label offset is wrong from the fifth rank on", "", (TERMS,), "sim:2-8"),
    Planted("clip", "SmoothedLabels", "a label smoothing of 0.001 was left in", "", (TERMS,)),
    Planted("clip", "TimesWorldSize", "the loss is multiplied by the world size besides a summing gather", f"{SENTENCE}/commit/8c4331ec", (TERMS, MEAN), "sim:2-8"),
    Planted("clip", "LocalMean", "each rank divides by its own rows", LOSS, (TERMS,), "sim:2-8"),
    Planted("clip", "SumNotMean", "a sum over rows", "", (TERMS,)),
    Planted("clip", "NotHalved", "the sum of both directions, not their mean", "", (TERMS,)),
    Planted("clip", "MeanOverPaddedRows", "padded rows count in the mean", "", (TERMS,), "sim:2-8"),
    Planted("clip", "OnlyImageToText", "texts never look for their images", "", (TERMS,)),
    Planted("clip", "DropsLastNegative", "one negative is masked", "", (TERMS,)),
    Planted("clip", "MasksDuplicates", "negatives equal to the positive are taken for positives", "", (TERMS,)),
    Planted("clip", "ScaledTwice", "a transposed view is scaled in place a second time", f"{JINA}/commit/25a73f2", (TERMS,), raises="a leaf Variable that requires grad is being used i"),
    Planted("clip", "NormalizesAgain", "anchors are normalised once more", "", (TERMS,)),
    Planted("clip", "DividesByNorm", "a row of zeros is divided by its norm", "", (TERMS,)),
    Planted("clip", "ScaleExponentiated", "exp of a scale that is no logarithm", "", (TERMS,)),
    Planted("clip", "ScaleClamped", "the scale is clamped at 100", "", (TERMS,)),
    Planted("clip", "ScaleOrDefault", "`scale or default` drops a scale of 0", f"{JINA}/blob/e4411f350479229b9c71af272bf3792b5e3c2ec1/src/training/loss/pairs.py", (TERMS,), "sim:2-8"),
    Planted("clip", "FrozenScaleForgotten", "a frozen scale is replaced by 1/0.07", "", (TERMS,)),
    Planted("clip", "ClampedLogits", "logits are clamped at 50", "", (TERMS,)),
    Planted("clip", "RoundedLogits", "float32 logits pass through bfloat16", "", (TERMS,)),
    Planted("clip", "LogitsFourUlpsUp", "logits are four units in the last place too high", "", (TERMS,), seeds=0.5),
    Planted("clip", "TF32Products", "products have ten bits", "", (TERMS,)),
    Planted("clip", "Float32Inside", "float64 features are multiplied in float32", "", (TERMS,)),
    Planted("clip", "HalfLoss", "the sum over rows passes through float16", "", (TERMS,)),
    Planted("clip", "NoMaxSubtraction", "log of a sum of exponentials overflows", f"{INF_CL}/ring.py", (TERMS,)),
    Planted("clip", "EpsilonInLog", "log(p + 1e-8)", "", (TERMS,)),
    Planted("clip", "HalfGradient", "the gradient of the logits passes through float16", "", (GRADS,)),
    Planted("clip", "SqueezesOneRow", "squeeze() collapses a batch of one", "https://github.com/salesforce/LAVIS/blob/baad2d7c8df599d8d9b081ba2e946626eaa2dc34/lavis/models/blip2_models/blip2_qformer.py", (TERMS,), raises="Expected floating point type for target", smallest=("rows", 1)),
    Planted("clip", "OneRowShortcut", "one pair returns a constant", "", (FORMED,), smallest=("rows", 1)),
    Planted("clip", "WidthOfEight", "columns beyond a multiple of 8 are dropped", f"{INF_CL}/flash.py", (TERMS,), smallest=("width", 9)),
    Planted("clip", "WidthUpTo128", "columns beyond 128 are dropped", f"{INF_CL}/flash.py", (TERMS,), smallest=("width", 129)),
    Planted("clip", "ChunkDropsRemainder", "rows beyond a multiple of 32 are dropped", "", (TERMS,), smallest=("rows", 33)),
    Planted("clip", "LastTilePadded", "the last tile of 16 columns is padded with zeros", f"{INF_CL}/flash.py", (TERMS,)),
    Planted("clip", "FullLastTileShort", "with a multiple of 16 columns the last row is dropped", "", (TERMS,), smallest=("rows", 16)),
    Planted("clip", "TilesNotRescaled", "log-sum-exp over tiles of 64 forgets to rescale", "", (TERMS,), smallest=("rows", 65)),
    Planted("clip", "LastTileDropped", "the last partial tile of columns is dropped", "", (TERMS,), smallest=("rows", 17), module="tiles"),
    Planted("clip", "ColumnsOfNextTile", "a tile's columns are added to those of the next tile", "", (TERMS,), module="tiles"),
    Planted("clip", "ColumnsNotRescaled", "sums over columns are not rescaled as their maximum grows", "", (TERMS,), smallest=("rows", 17), module="tiles"),
    Planted("clip", "DiagonalOfTileBefore", "beyond the first tile of rows a row's partner is one tile off", "", (TERMS,), module="tiles"),
    Planted("clip", "FixedMaximum", "the largest logit is taken to be the scale", "", (TERMS,), module="tiles"),
    Planted("clip", "TileSumsInHalf", "a tile's sums pass through bfloat16", "", (TERMS,), module="tiles"),
    Planted("clip", "MaximumOfThisRank", "sums over a rank's rows, less its own maximum, are added up unscaled", "", (TERMS,), "sim:2-8", options=LOCAL, module="ranks"),
    Planted("clip", "ColumnsOfThisRank", "columns' sums are not combined over the ranks", "", (TERMS,), "sim:2-8", options=LOCAL, module="ranks"),
    Planted("clip", "OwnColumnsTwice", "a rank counts its rows twice in its own columns", "", (TERMS,), "sim:2-8", options=LOCAL, module="ranks"),
    Planted("clip", "ScatterAverages", "parts of the texts' gradients are averaged over the ranks", "", (GRADS, MEAN), "sim:2-8", options=LOCAL, module="ranks"),
    Planted("clip", "OwnPartAlone", "a rank's texts get the part of the gradient that its own images give", "", (GRADS,), "sim:2-8", options=LOCAL, module="ranks"),
    Planted("clip", "PartsOfEmptyRanksDropped", "parts of the texts' gradients are counted without ranks that hold no rows", "", (GRADS,), "sim:2-8", options=LOCAL, empty_ranks=True, module="ranks"),
    Planted("clip", "EmptyRankSendsNoPart", "a rank without rows takes no part in the sum of the texts' gradients", "", (GRADS,), "sim:2-8", options=LOCAL, raises="all_reduce", empty_ranks=True, module="ranks"),
    Planted("clip", "CotangentOfThisRank", "all columns are weighed as this rank weighs its loss", "", (COTANGENTS,), "sim:2-8", options=LOCAL, module="ranks"),
    Planted("clip", "GradientUpTo64Rows", "rows beyond 64 get no gradient", "", (GRADS,), smallest=("rows", 65)),
    Planted("clip", "ContiguousOnly", "view() of a strided tensor", LOSS, (TERMS,), raises="view size is not compatible with input tensor's si", strict=True),
    Planted("clip", "ReadsMemory", "strides are ignored", f"{TORCH}/issues/192920", (TERMS,)),
    Planted("clip", "PadsStay", "padded rows stay among the negatives", "", (TERMS,), "sim:2-8"),
    Planted("clip", "TruncatesToShortest", "every rank is cut to the shortest", "", (TERMS,), "sim:2-8"),
    Planted("clip", "CountsFromRankZero", "all ranks are taken to hold rank 0's rows", "", (TERMS,), "sim:2-8", raises="The expanded size of the tensor ("),
    Planted("clip", "EvenChunks", "unequal parts are split evenly", LOSS, (TERMS,), "sim:2-8"),
    Planted("clip", "GathersAlone", "a single process talks to torch.distributed", f"{LIGHTLY}/commit/c802af86; https://github.com/KevinMusgrave/pytorch-metric-learning/issues/542", (TERMS,), raises="Default process group has not been initialized, pl"),
    Planted("clip", "OthersReversed", "from three ranks on, other ranks' rows come in reverse", "", (TERMS,), "sim:2-8"),
    Planted("clip", "UnwaitedGather", "nobody waits for the gather", f"{TORCH}/issues/108780", (TERMS,), "sim:2-8", raises="read_in_flight"),
    Planted("clip", "OrderByRank", "rank 0 gathers texts first, all others images", "", (TERMS,), "sim:2-8"),
    Planted("clip", "OneRowReturnsEarly", "a rank with one row leaves before the gather", "", (TERMS,), "sim:2-8", raises="early_exit"),
    Planted("clip", "GradientOnce", "feature gradients are 1/W of the true ones", f"{OPEN_CLIP}/issues/616", (MEAN,), "sim:2-8"),
    Planted("clip", "ForgetsOwnRows", "own rows are constants too", "", (GRADS,), "sim:2-8"),
    Planted("clip", "OwnRowsAlways", "own rows carry gradient in the gallery, under local_loss too", "", (GRADS,), "sim:2-8"),
    Planted("clip", "BackwardOfEqualRows", "the gather's backward keeps the rows from rank times this rank's rows on", "", (GRADS,), "sim:2-8", options=LOCAL),
    Planted("clip", "GradientTimesWorld", "the gather's backward multiplies by the world size", f"{TORCH}/issues/58005; {SENTENCE}/commit/8c4331ec", (GRADS,), "sim:2-8"),
    Planted("clip", "AveragesInBackward", "the gather's backward averages", MPI_OPS, (GRADS,), "sim:2-8"),
    Planted("clip", "OwnSliceInBackward", "the gather's backward keeps this rank's gradient alone", f"{LIGHTLY}/commit/80fa5b5c", (GRADS,), "sim:2-8"),
    Planted("clip", "OddRankLeftOut", "in odd worlds the last rank's gradient is left out", "", (GRADS,), "sim:2-8"),
    Planted("clip", "GradientWithinNode", "gradients are summed within nodes of four", "", (GRADS,), "sim:2-8"),
    Planted("clip", "BackwardTalks", "backward communicates although gather_with_grad=False", "", (SILENT,), "sim:2-8"),
    Planted("clip", "ScaleDetached", "the scale gets no gradient", "", (GRADS,)),
    Planted("clip", "ScaleSummedOverRanks", "the scale's gradient is summed over ranks before the mean", f"{INF_CL}/ring.py", (GRADS,), "sim:2-8"),
    Planted("clip", "BiasUnused", "the bias is accepted, and not used", f"{OPEN_CLIP}/issues/1076", (FORMED,)),
    Planted("clip", "GalleryDetached", "the rows compared with are constants", "", (GRADS,)),
    Planted("clip", "FrozenImageStopsText", "frozen images stop the texts' gradient", "", (GRADS,), "sim:2-8"),
    Planted("clip", "FrozenTextHalvesLoss", "frozen texts leave one direction", "", (TERMS,)),
    Planted("clip", "IgnoresCotangent", "the upstream gradient is taken for 1", f"{LIGER}/pull/1298", (COTANGENTS,)),
    Planted("clip", "PositiveCotangent", "the upstream gradient is taken for positive", f"{LIGER}/pull/1298", (COTANGENTS,)),
    Planted("clip", "ClampsCotangent", "the upstream gradient is clamped", "", (COTANGENTS,)),
    Planted("clip", "NotTwiceDifferentiable", "backward detaches", "", (TWICE,)),
    Planted("clip", "CurvatureNarrowed", "second derivatives pass through float32", "", (TWICE,)),
    Planted("clip", "RefusesSecondDerivative", "backward cannot be differentiated", "", (TWICE,)),
    Planted("clip", "IgnoresOutputDict", "output_dict=True returns a tensor", "", (FORMED,)),
    Planted("clip", "AlwaysDict", "output_dict=False returns a dict", "", (FORMED,)),
    Planted("clip", "ScaleAmongLosses", "the scale is among the losses, so sum(losses) is wrong", f"{OPEN_CLIP}/commit/5f9ae12", (FORMED,)),
    Planted("clip", "MisspeltKey", "the key of the loss is another", f"{OPEN_CLIP}/commit/5f9ae12", (TERMS,)),
    Planted("clip", "ShapeOne", "the loss has shape [1]", "", (TERMS,), raises="Mismatch in shape"),
    Planted("clip", "ShapeOfScale", "a scale of shape [1] gives a loss of shape [1]", "", (TERMS,), raises="Mismatch in shape"),
    Planted("clip", "PromotesToFloat64", "the loss is float64, whatever the features", "", (FORMED,)),
    Planted("clip", "PythonNumber", "the loss is a Python number", "", (TERMS,), raises="expected a torch.Tensor, got float"),
    Planted("clip", "MeanOfNoRows", "a rank's mean over its rows, times their number: NaN where it has none", "", (TERMS,), "sim:2-8", empty_ranks=True),
    Planted("clip", "LeavesWithoutRows", "a rank without rows returns before the gather, and the others wait", "", (TERMS,), "sim:2-8", raises="early_exit", empty_ranks=True),
    Planted("siglip", "StacksRows", "the losses of rows are stacked, of which a rank may have none", "", (TERMS,), "sim:2-8", raises="stack expects a non-empty TensorList", empty_ranks=True),
    Planted("clip", "LabelsCachedByCount", "labels are cached by their number, whatever the offset", LOSS, (FRESH,), raises="Inference tensors cannot be saved for backward"),
    Planted("clip", "LabelsCachedUnderInference", "labels made under inference mode are kept for training", LOSS, (FRESH,), raises="Inference tensors cannot be saved for backward"),
    Planted("clip", "LabelsKeyedWithoutOffset", "cached labels are found by their number alone, whatever the offset", LOSS, (FRESH,), "sim:2-8", raises="out of bounds"),
    Planted("clip", "LabelsKeyedByTotal", "cached labels are found by the rows of a rank and of all, whatever the offset", LOSS, (FRESH,), "sim:3-4", options=LOCAL, raises="out of bounds"),
    Planted("clip", "LabelsNeverRefreshed", "labels of the first call are cut to size", DECLIP, (FRESH,), raises="Inference tensors cannot be saved for backward"),
    Planted("clip", "WeightOfFirstCall", "the first call's number of rows is kept", "", (FRESH,)),
    Planted("clip", "LargestLogitRemembered", "the shift of log-sum-exp is the largest logit of all calls", "", (TERMS,)),
    Planted("clip", "TurnsLocalOff", "a call under inference mode changes local_loss for good", "", (FRESH,), "sim:2-8"),
    Planted("clip", "LabelsOfAllInstances", "a cache is shared by all instances", "https://github.com/facebookresearch/multimodal/pull/510", (TERMS,), raises="Expected input batch_size ("),
    Planted("clip", "AltersFeatures", "features are altered in place", f"{JINA}/commit/25a73f2", (TERMS,)),
    Planted("clip", "ClampsScaleInPlace", "the scale is clamped in place", "", (INPUTS,)),
    Planted("clip", "Noisy", "the last bit is random", "", (SAME,), raises="not every time for the same case: Falsified"),
    Planted("clip", "RowsWithoutGaps", "rows of contiguous elements are taken to follow one another: not in the columns of a wider tensor", "", (TERMS,)),
    Planted("clip", "ColumnsWithoutGaps", "the same of columns: not in the rows of a longer column-major tensor", "", (TERMS,)),
    Planted("clip", "InferenceInHalf", "without gradient logits are taken in bfloat16", "", (TERMS,)),
    Planted("clip", "InferenceOfOwnRows", "without gradient each rank sees its own rows alone", "", (TERMS,), "sim:2-8"),
    Planted("clip", "InferenceInPlace", "without gradient the scale is multiplied into the features themselves", "", (INPUTS,)),
    Planted("clip", "CotangentNarrowed", "the cotangent is taken in bfloat16", "", (COTANGENTS,)),
    Planted("clip", "CotangentScaledInPlace", "backward scales the cotangent itself", "", (INPUTS,)),
    Planted("clip", "SlopeScaledInPlace", "backward scales what it kept in place: the second through one graph is wrong", "", (SAME,)),
    Planted("clip", "GathersUndetached", "compiled, a collective carries gradient", "peers/FINDINGS.md, open_clip_torch 3.3.0: `ClipLoss`", (COMPILED,), "proc:2", even=True),
    Planted("clip", "CompiledDetaches", "compiled, the rows compared with are constants", "", (COMPILED,), "proc:2", even=True),
    Planted("clip", "CompiledNarrow", "compiled, half-precision logits are not widened", "", (NARROWED,), "proc:2", even=True),
    Planted("clip", "CompiledHalved", "compiled, the loss is halved", "", (COMPILED,)),
    Planted("clip", "KeepsGraph", "every call's graph is kept", f"{SENTENCE}/pull/3114", (TRACE,)),
    Planted("clip", "KeepsFeatures", "the last features are kept", "", (TRACE,)),
    Planted("clip", "SetsDefaultDtype", "the default dtype is set", "", (TRACE,)),
    Planted("clip", "LeavesGradientsOff", "gradients stay switched off", f"{LIGER}/commit/4a1677b8", (TRACE,)),
    Planted("clip", "SeedsGenerator", "torch's generator is seeded", f"https://github.com/luyug/GradCache/blob/0c33638cb27c2519ad09c476824d550589a8ec38/src/grad_cache/context_managers.py; {SENTENCE}/pull/3862", (TRACE,)),
    Planted("clip", "DrawsRandomNumbers", "random numbers are drawn that nothing needs", f"{SENTENCE}/pull/3862", (TRACE,)),
    Planted("clip", "SeedsPython", "Python's generator is seeded", "", (TRACE,)),
    Planted("clip", "Prints", "the loss is printed", "", (TRACE,)),
    Planted("clip", "WritesToStandardError", "a shape is written to standard error", "", (TRACE,)),
    Planted("clip", "SetsThreads", "the number of threads is changed", "", (TRACE,)),
    Planted("clip", "SetsDeterministic", "deterministic algorithms are switched on", "", (TRACE,)),
    Planted("clip", "SetsMatmulPrecision", "float32 products are allowed TF32", "", (TRACE,)),
    Planted("clip", "AllowsTf32", "float32 products on a GPU are allowed TF32", "", (TRACE,)),
    Planted("clip", "PrefersTf32", "so are they by the newer setting, with which the older one contradicts",
            "", (TRACE,)),
    Planted("clip", "AllowsReducedPrecision", "float16 products on a GPU add up in float16", "", (TRACE,)),
    Planted("clip", "SetsEnvironment", "an environment variable is set", "", (TRACE,)),
    Planted("clip", "DetectsAnomalies", "anomaly detection stays switched on", "", (TRACE,)),
    Planted("coca", "IntegerZero", "a term of weight 0 is an int64 tensor", f"{OPEN_CLIP}/pull/532", (FORMED,)),
    Planted("coca", "PythonZero", "a term of weight 0 is a Python number", f"{OPEN_CLIP}/commit/fb72f4d", (TERMS,), raises="expected a torch.Tensor, got int"),
    Planted("coca", "WeightTimesUnweighted", "0 times NaN, where a weight is 0 and all is padding", LOSS, (TERMS,)),
    Planted("coca", "ClipWeightIgnored", "the contrastive weight is ignored", "", (TERMS,)),
    Planted("coca", "CaptionWeightTwice", "the caption weight counts twice", "", (TERMS,), "sim:2-8"),
    Planted("coca", "WeightsSwapped", "the weights change places", "", (TERMS,)),
    Planted("coca", "NaNForPadding", "a batch of padding costs NaN", f"{LOSS}; {LIGER}/commit/53d5934c", (TERMS,)),
    Planted("coca", "PaddingLeaks", "the logits at padding leak into the last bits", "", (TERMS,)),
    Planted("coca", "PadsSubtracted", "the losses at padding are summed, and their sum is subtracted again", "", (PADDING,)),
    Planted("coca", "PaddingGetsGradient", "the logits at padding get gradient", "", (GRADS,)),
    Planted("coca", "IgnoresMinus100", "-100 is ignored while padding is another id", f"{OPEN_CLIP}/pull/316; {LIGER}/pull/974", (TERMS,)),
    Planted("coca", "PadIdIgnored", "pad_id is taken for 0", "", (TERMS,), raises="IndexError: Target"),
    Planted("coca", "CountsPads", "padding counts in the mean", "", (TERMS,), "sim:2-8"),
    Planted("coca", "OneTokenCountsTwo", "a single token is divided by two", "", (TERMS,)),
    Planted("coca", "TailPadsOnly", "nothing behind the first padding counts", "", (TERMS,), "sim:2-8"),
    Planted("coca", "PadsAltered", "labels are altered in place", "", (INPUTS,)),
    Planted("coca", "LogitsFourUlpsUp", "logits are four units in the last place too high", "", (GRADS,), "sim:2-8", seeds=0.5),
    Planted("coca", "MeanOfRankMeans", "the caption loss is a mean of rank means", "https://github.com/huggingface/transformers/issues/34191", (TERMS, MEAN), "sim:2-8"),
    Planted("coca", "MeanOfCaptionMeans", "a mean of the captions' means", "", (TERMS,), "sim:2-8"),
    Planted("coca", "TokensOfRankZero", "all ranks are taken to hold rank 0's tokens", "", (TERMS,), "sim:2-8"),
    Planted("coca", "AllPadRankSkips", "a rank of padding leaves before the sum", "", (TERMS,), "sim:2-8", raises="early_exit"),
    Planted("coca", "CaptionTimesTokens", "a sum over tokens", "", (TERMS,), "sim:2-8"),
    Planted("coca", "ShiftsOnceMore", "labels are shifted a second time", "", (TERMS,), "sim:2-8"),
    Planted("coca", "LastTokenForgotten", "the last token counts nothing", "", (TERMS,), "sim:2-8"),
    Planted("coca", "VocabularyOf32", "ids from 32 on are no negatives", f"{LIGER}/pull/330", (TERMS,), "sim:2-8", smallest=("vocabulary", 33)),
    Planted("coca", "CaptionsInBFloat16", "float32 caption logits pass through bfloat16", "", (TERMS,), "sim:2-8"),
    Planted("coca", "CaptionsContiguousOnly", "view() of strided logits", "", (TERMS,), raises="view size is not compatible with input tensor's si", strict=True),
    Planted("coca", "CaptionsTransposed", "tokens and vocabulary change places", "", (PADDING,)),
    Planted("coca", "CaptionNoMaxSubtraction", "log of a sum of exponentials overflows", f"{LIGER}/commit/449f5cba", (MEAN,), "sim:2-8"),
    Planted("coca", "CaptionGradientOverWorld", "the gradient of the logits is divided by the world size", "", (GRADS,), "sim:2-8"),
    Planted("coca", "SmallestGradientLost", "on several ranks a sparse gradient leaves out its smallest element", "", (MEAN,), "sim:2-8"),
    Planted("coca", "TermsSwapped", "the tuple is in another order than the keys", "", (TERMS,)),
    Planted("coca", "SumOfTerms", "output_dict=False returns the sum", "", (TERMS,)),
    Planted("coca", "ForgetsBias", "the bias is accepted, and not used", f"{OPEN_CLIP}/commit/204d53e", (FORMED,)),
    Planted("coca", "RefusesBias", "no argument logit_bias", LOSS, (TERMS,), raises="forward() got an unexpected keyword argument 'logi"),
    Planted("coca", "FrozenCaptionsSkipClip", "frozen captions stop the contrastive gradient", "", (FORMED,)),
    Planted("coca", "TokenCountSummedTwice", "from three ranks on, tokens are summed twice", "", (TERMS,), "sim:2-8"),
    Planted("distill", "TermsTogether", "a term that is derived alone derives the other too", "", (COTANGENTS,)),
    Planted("distill", "TeacherLearns", "the teacher gets gradients", f"{SENTENCE}/pull/3880", (GRADS,)),
    Planted("distill", "TeacherScaleLearns", "the teacher's scale gets a gradient", f"{SENTENCE}/pull/3880", (GRADS,)),
    Planted("distill", "LogitsFourUlpsUp", "logits are four units in the last place too high", "", (TERMS,), seeds=0.5),
    Planted("distill", "TeacherOfOtherRow", "teacher and student rows are mispaired from rank 1 on", CHINESE_CLIP, (TERMS,), "sim:2-8"),
    Planted("distill", "TeacherOwnFirst", "the teacher's columns start with own rows", CHINESE_CLIP, (TERMS,), "sim:2-8"),
    Planted("distill", "TeacherTransposed", "the teacher's texts teach images", "", (TERMS,)),
    Planted("distill", "StudentScaleForTeacher", "the student's scale is used for the teacher", "", (TERMS,)),
    Planted("distill", "WidthOfStudent", "the teacher's features are cut to the student's width", "", (TERMS,)),
    Planted("distill", "RolesSwapped", "teacher and student change places", "", (TERMS,)),
    Planted("distill", "Divergence", "the teacher's entropy is subtracted", "", (TERMS,)),
    Planted("distill", "StudentDetached", "the student learns nothing from the teacher", "", (GRADS,)),
    Planted("distill", "OneDirection", "texts are taught what images should match", "", (TERMS,)),
    Planted("distill", "MeanOverColumns", "a mean over all pairs", "", (TERMS,)),
    Planted("distill", "DistillLocalMean", "under local_loss each rank divides by its own rows", "", (TERMS,), "sim:2-8"),
    Planted("distill", "LogOfSoftmax", "log of a softmax that underflows", f"{LIGER}/commit/449f5cba", (TERMS,)),
    Planted("distill", "TeacherInBFloat16", "the teacher's probabilities pass through bfloat16", f"{LIGER}/pull/1329", (TERMS,)),
    Planted("distill", "HardTeacher", "the teacher's best match alone", "", (TERMS,)),
    Planted("distill", "SharpenedTeacher", "the teacher's temperature is 1% off", f"{SENTENCE}/commit/8189b7e4", (TERMS,)),
    Planted("distill", "GradientAsIfHard", "negatives get no gradient", "", (GRADS,)),
    Planted("distill", "DistillTimesWorld", "the term is multiplied by the world size", "", (TERMS,), "sim:2-8"),
    Planted("distill", "LeavesGradientsOff", "gradients stay switched off", "", (TRACE,)),
    Planted("distill", "TeacherCachedByAddress", "the teacher's logits are kept by the address of its features, which are written over", "", (FRESH,)),
    Planted("distill", "TurnsGradientsOn", "gradients are turned on after the teacher, whatever they were", "", (TRACE,)),
    Planted("distill", "TeacherCached", "the teacher's logits of an earlier batch of this size are used", "", (FRESH,)),
    Planted("distill", "FrozenStudentNoTeacher", "a frozen student is not taught", "", (TERMS,)),
    Planted("clip", "TakesRowsAsTheyAre", "rows are not normalised", "", (TERMS,), features="normalized", module="forms"),
    Planted("clip", "LengthDetached", "the gradient goes past the rows' lengths", "", (GRADS,), features="normalized", module="forms"),
    Planted("clip", "LengthPlusEpsilon", "rows are divided by their length and a little more", "", (TERMS,), features="normalized", module="forms"),
    Planted("clip", "NormalizesInBFloat16", "float32 rows are normalised in bfloat16", "", (TERMS,), features="normalized", module="forms"),
    Planted("infonce", "InfoNCENormalizes", "rows that are to be taken as they are are normalised", "", (TERMS,), features="raw", module="forms"),
    Planted("clip", "ForgetsExponential", "the scale's logarithm is taken for the scale", "", (TERMS,), held=LOGARITHM, module="forms"),
    Planted("clip", "SlopeOfScale", "the gradient of the scale's logarithm is the scale's", "", (GRADS,), held=LOGARITHM, module="forms"),
    Planted("clip", "ScaleInBFloat16", "a float32 scale passes through bfloat16", "", (TERMS,), held=LOGARITHM, module="forms"),
    Planted("siglip", "BiasUnused", "the bias is accepted, and not used", f"{OPEN_CLIP}/issues/1076", (TERMS,)),
    Planted("siglip", "BiasOrDefault", "`bias or default` replaces no bias, and 0", "", (TERMS,)),
    Planted("siglip", "BiasTwice", "the bias counts twice", LOSS, (TERMS,)),
    Planted("siglip", "BiasScaled", "the bias is scaled", "", (TERMS,)),
    Planted("siglip", "OwnSignTurned", "own labels have the other sign", "", (TERMS,)),
    Planted("siglip", "PartnersEverywhere", "other ranks' texts have partners too", f"{OPEN_CLIP}/issues/742", (TERMS,), "sim:2-8"),
    Planted("siglip", "SquareLabels", "labels are square, whatever the other rank's rows", LOSS, (TERMS,), "sim:2-8", raises="The size of tensor a ("),
    Planted("siglip", "NegativesWeighted", "negatives count less the more there are", "", (TERMS,)),
    Planted("siglip", "LocalCount", "each rank divides by its own images", LOSS, (TERMS,), "sim:2-8"),
    Planted("siglip", "AllPairs", "a mean over all pairs", "", (TERMS,)),
    Planted("siglip", "GlobalMean", "a mean over all images, before the mean over ranks", "", (TERMS,), "sim:2-8"),
    Planted("siglip", "HalfSum", "sums pass through float16", LOSS, (TERMS,)),
    Planted("siglip", "Float16Sum", "in float16, sums overflow", LOSS, (TERMS,), strict=True),
    Planted("siglip", "SoftplusThreshold", "torch's softplus drops exp(-x) beyond 20", "https://docs.pytorch.org/docs/stable/generated/torch.nn.Softplus.html", (TERMS,), strict=True),
    Planted("siglip", "LogOfSigmoid", "log of a sigmoid that underflows", "", (TERMS,), "sim:2-8"),
    Planted("siglip", "BFloat16Logits", "float32 logits pass through bfloat16", LOSS, (TERMS,)),
    Planted("siglip", "LogitsFourUlpsUp", "logits are four units in the last place too high", "", (TERMS,), seeds=0.5),
    Planted("siglip", "NoSlopeAtZero", "a logit of exactly 0 gets no gradient: relu and abs both have slope 0 there", "", (GRADS,)),
    Planted("siglip", "ClampedSigmoid", "log of a sigmoid clamped at 1e-7", "", (TERMS,)),
    Planted("siglip", "PathsDifferInDtype", "one dist_impl returns another dtype", MAIN_LOSS, (FORMED,)),
    Planted("siglip", "ChunkRemainderDropped", "images beyond a multiple of the chunk are dropped", "", (TERMS,), smallest=("rows of a rank", 33)),
    Planted("siglip", "ChunkLabelsUnshifted", "every chunk has the labels of the first", f"{OPEN_CLIP}/commit/357bd97", (GRADS,), smallest=("rows of a rank", 33)),
    Planted("siglip", "ChunkLabelsSquare", "the labels of a chunk are square", f"{OPEN_CLIP}/commit/357bd97", (GRADS,)),
    Planted("siglip", "ChunkOverlaps", "the last chunk repeats images of the one before", "", (TERMS,), smallest=("rows of a rank", 33)),
    Planted("siglip", "SkipsANeighbour", "one rank's texts are scored twice, another's never", f"{OPEN_CLIP}/issues/742", (TERMS,), "sim:2-8", raises="RuntimeError: self"),
    Planted("siglip", "RingStopsShort", "an even ring leaves out the rank opposite", "", (TERMS,), "sim:2-8"),
    Planted("siglip", "RingOfFour", "texts from beyond three hops carry no gradient", "", (GRADS,), "sim:2-8"),
    Planted("siglip", "RingWithoutGradient", "texts that come round the ring are constants", "", (GRADS,), "sim:2-8"),
    Planted("siglip", "RingBackwardOnward", "gradients travel on, not back", "", (TERMS,), "sim:2-8", raises="mismatch"),
    Planted("siglip", "RingOfOwnShape", "what comes is taken to have the shape of what went", LOSS, (TERMS,), "sim:2-8", raises="mismatch"),
    Planted("siglip", "RingReusesBuffer", "a buffer is received into again while backward needs it", "", (TERMS,), "sim:2-8"),
    Planted("siglip", "BlockingRing", "everyone sends before anyone receives", "", (TERMS,), "sim:2-8", raises="needs_buffering"),
    Planted("siglip", "GatherStopsGradient", "gathered texts are constants", "", (GRADS,), "sim:2-8"),
    Planted("siglip", "GatherKeepsOwn", "rank 0 scores its own texts for the last rank's", "", (TERMS,), "sim:2-8", raises="early_exit"),
    Planted("siglip", "ReduceCountsOwnTwice", "with \"reduce\" own texts are negatives too", "", (TERMS,), "sim:2-8"),
    Planted("siglip", "RefusesReduce", "\"reduce\" is refused", "", (TERMS,), raises="ValueError: dist_impl"),
    Planted("siglip", "OtherBlocksDetachImages", "other ranks' texts give images no gradient", "", (GRADS,), "sim:2-8"),
    Planted("siglip", "FrozenTextsStayHome", "frozen texts do not travel", "", (TERMS,), "sim:2-8"),
    Planted("siglip", "TextGradientTwice", "the last rank counts the gradient of texts twice", "", (GRADS,), "sim:2-8"),
    Planted("gather", "average_in_backward", "backward averages", MPI_OPS, (GRADS,), "sim:2-8"),
    Planted("gather", "even_chunks", "unequal parts are split evenly", LOSS, (TERMS,), "sim:2-8", raises="Mismatch in shape"),
    Planted("gather", "forgets_own_rows", "own rows are constants too", "", (GRADS,), "sim:2-8"),
    Planted("gather", "gradient_once", "gradients are 1/W of the true ones", f"{OPEN_CLIP}/issues/616", (GRADS,), "sim:2-8"),
    Planted("gather", "gradient_within_node", "gradients are summed within nodes of four", "", (GRADS,), "sim:2-8"),
    Planted("gather", "own_rows_always", "own rows carry gradient under local_loss too", "", (GRADS,), "sim:2-8"),
    Planted("gather", "own_slice", "backward keeps this rank's gradient alone", f"{LIGHTLY}/commit/80fa5b5c", (GRADS,), "sim:2-8"),
    Planted("gather", "pads_stay", "padded rows stay", "", (TERMS,), "sim:2-8", raises="Mismatch in shape"),
    Planted("gather", "unwaited", "nobody waits for the gather", f"{TORCH}/issues/108780", (TERMS,), "sim:2-8", raises="read_in_flight"),
    Planted("gather", "own_first", "own rows come first", CHINESE_CLIP, (TERMS,), "sim:2-8"),
    Planted("gather", "flags_swapped", "the two flags change places", "https://github.com/luyug/GradCache/commit/3369543", (GRADS,), "sim:2-8"),
    Planted("gather", "pair_swapped", "on odd ranks images and texts change places", "", (TERMS,), "sim:2-8"),
    Planted("gather", "stacked", "there is one dimension more", "", (TERMS,), raises="Mismatch in shape"),
    Planted("gather", "interleaved", "ranks take turns, row by row", f"{SENTENCE}/pull/3453", (TERMS,), "sim:2-8"),
    Planted("gather", "forgets_return", "all ranks but the first get their own rows alone", f"{STABLE_PRETRAINING}/pull/409", (TERMS,), "sim:2-8", raises="Mismatch in shape"),
    Planted("gather", "half_on_the_wire", "rows travel in bfloat16", "", (TERMS,)),
    Planted("gather", "transposed_cotangent_misread", "a transposed gradient is taken for contiguous", f"{TORCH}/issues/120386", (GRADS,), "sim:2-8"),
    Planted("gather", "cotangent_in_place", "an expanded gradient is written to", "", (TERMS,), "sim:2-8", raises="unsupported operation"),
    Planted("gather", "contiguous_only", "strided features are refused", f"{TORCH}/issues/192920", (TERMS,), "sim:2-8", raises="input tensor has to be contiguous", strict=True),
    Planted("gather", "first_derivative_only", "backward detaches", "", (SECOND,), "sim:2-8"),
    Planted("gather", "width_packed", "columns beyond 128 are others", "", (COTANGENTS,), "sim:2-8"),
    Planted("gather", "cotangent_summed_in_place", "backward sums over the ranks in the cotangent itself", "", (INPUTS,), "sim:2-8"),
    Planted("gather", "sums_in_half", "gradients pass through bfloat16", "", (COTANGENTS, SECOND), "sim:2-8"),
    Planted("gather", "sums_in_single", "gradients pass through float32, in float64 too", "", (COTANGENTS,), "sim:2-8"),
    Planted("gather", "last_rank_without_gradient", "the last rank gets no gradient", "", (GRADS,), "sim:2-8"),
    Planted("gather", "broadcast_backward", "gradients of broadcast rows are summed on rank 0 alone", "", (GRADS,), "sim:2-8"),
    Planted("exchange", "wrong_way", "left and right are confused", "", (TERMS,), "sim:2-8", raises="Mismatch in shape"),
    Planted("exchange", "once_differentiable", "backward detaches", "", (SECOND,), "sim:2-8"),
    Planted("exchange", "backward_onward", "gradients travel on, not back", "", (GRADS,), "sim:2-8"),
    Planted("exchange", "backward_stays_home", "gradients do not travel", "", (GRADS,), "sim:2-8"),
    Planted("exchange", "contiguous_cotangent_only", "strided gradients are refused", LOSS, (TERMS,), "sim:2-8", raises="gradient has to be contiguous"),
    Planted("exchange", "cotangent_misread", "a strided gradient is taken for contiguous", f"{TORCH}/issues/120386", (GRADS,), "sim:2-8"),
    Planted("exchange", "contiguous_only", "strided tensors are refused", LOSS, (TERMS,), "sim:2-8", raises="input tensor has to be contiguous", strict=True),
    Planted("exchange", "misreads_strides", "a transposed tensor is taken for contiguous", f"{TORCH}/issues/192920", (TERMS,), "sim:2-8"),
    Planted("exchange", "expanded_only_once", "an expanded tensor arrives once", f"{TORCH}/issues/192920", (TERMS,), "sim:2-8"),
    Planted("exchange", "own_shape", "what comes is taken to have the shape of what went", LOSS, (TERMS,), "sim:2-8", raises="mismatch"),
    Planted("exchange", "blocking", "everyone sends before anyone receives", "", (TERMS,), "sim:2-8", raises="needs_buffering"),
    Planted("exchange", "unwaited", "nobody waits for what comes", f"{TORCH}/issues/108780", (TERMS,), "sim:2-8", raises="waits in"),
    Planted("exchange", "sends_temporary", "what is sent changes before it has gone", "", (TERMS,), "sim:2-8", raises="written_in_flight"),
    Planted("exchange", "last_rank_gets_zeros", "nothing comes from beyond the end", "", (TERMS,), "sim:2-8"),
    Planted("exchange", "float32_on_the_wire", "float64 travels as float32", "", (TERMS,), "sim:2-8"),
    Planted("exchange", "first_64_rows", "rows beyond 64 arrive as zeros", "", (TERMS,), "sim:2-8"),
    Planted("exchange", "half_gradient", "gradients pass through float16", "", (GRADS,), "sim:2-8"),
    Planted("exchange", "receives_own_on_rank_zero", "rank 0 keeps its own", "", (TERMS,), "sim:2-8", raises="early_exit"),
    Planted("exchange", "exchanges_by_gather", "a gather of equally many rows, without gradient", "", (TERMS,), "sim:2-8", raises="mismatch"),
    Planted("exchange", "swapped", "between two ranks the received tensors change places", LOSS, (TERMS,), "sim:2-8", options=(("bidirectional", True),)),
    Planted("exchange", "posted_order", "between two ranks messages are matched in another order than posted", LOSS, (TERMS,), "sim:2-8", options=(("bidirectional", True),)),
    Planted("exchange", "one_buffer", "both messages are received into one buffer", "", (TERMS,), "sim:2-8", options=(("bidirectional", True),)),
    Planted("exchange", "bidir_reversed", "the received tensors change places", "", (TERMS,), "sim:2-8", raises="Mismatch in shape", options=(("bidirectional", True),)),
    Planted("exchange", "one_gradient", "one of two tensors gets no gradient", "", (GRADS,), "sim:2-8", options=(("bidirectional", True),)),
    Planted("exchange", "same_message", "both neighbours get the same", "", (TERMS,), "sim:2-8", options=(("bidirectional", True),)),
    Planted("exchange", "second_waits_for_first", "rank 0 talks in another order", "", (TERMS,), "sim:2-8", raises="deadlock", options=(("bidirectional", True),)),
    Planted("infonce", "NoTemperature", "the temperature is 0.07, whichever is given", DECLIP, (TERMS, GRADS), module="cosine"),
    Planted("infonce", "FirstOrderOnly", "second derivatives are 0", "peers/FINDINGS.md, liger-kernel 0.8.5: `LigerCrossEntropyLoss`", (TWICE,), module="cosine"),
    Planted("infonce", "OwnKeysOnly", "each rank compares with its own keys alone", "", (TERMS, GRADS, MEAN), "sim:2-8", options=LOCAL, module="cosine"),
    Planted("ntxent", "CountsItself", "each view is among its own negatives", "peers/FINDINGS.md, infonce 0.3: `TwoViewsByLabel`", (TERMS, GRADS), module="cosine"),
    Planted("ntxent", "OneViewOnly", "second views are no anchors", "", (TERMS, GRADS), module="cosine"),
    Planted("ntxent", "Underflows", "log of a probability that underflows, plus the smallest normal number", "peers/FINDINGS.md, pytorch-metric-learning 2.9.0: `NTXentLoss`", (TERMS,), module="cosine"),
    Planted("cross_entropy", "CountsIgnored", "ignored labels count in the mean", "", (TERMS, GRADS), module="cosine"),
    Planted("cross_entropy", "OverwritesLogits", "the logits are overwritten", "peers/FINDINGS.md, liger-kernel 0.8.5: `LigerCrossEntropyLoss`", (INPUTS,), module="cosine"),
    Planted("linear_cross_entropy", "ignored_count", "tokens that are ignored count in the mean", "", (TERMS, GRADS)),
    Planted("linear_cross_entropy", "writes_over_gradients", "the backward writes a gradient over an earlier one", "", (SAME,)),
    Planted("linear_cross_entropy", "last_chunk_dropped", "a last chunk that is not full is dropped", "", (TERMS,)),
    Planted("linear_cross_entropy", "mean_of_chunks", "the mean over chunks of their means", "", (TERMS,)),
    Planted("linear_cross_entropy", "half_sums", "what a token costs passes through bfloat16", "", (TERMS,)),
    Planted("linear_cross_entropy", "no_rescaling", "log-sum-exp without a maximum overflows", "", (TERMS,)),
    Planted("linear_cross_entropy", "smooths_others", "the label has no part of the share that is smoothed", "", (TERMS, GRADS)),
    Planted("linear_cross_entropy", "z_loss_constant", "the z-loss has no gradient", "", (GRADS,)),
    Planted("linear_cross_entropy", "z_loss_of_the_mean", "the z-loss is the square of the mean", "", (TERMS,)),
    Planted("linear_cross_entropy", "bias_constant", "the bias gets no gradient", "", (GRADS,)),
    Planted("linear_cross_entropy", "weight_of_last_chunk", "the weight's gradient is that of the last chunk", "", (GRADS,)),
    Planted("linear_cross_entropy", "ignores_cotangent", "gradients formed in the forward are not multiplied with the upstream one", f"{LIGER}/pull/1298", (COTANGENTS,)),
    Planted("linear_cross_entropy", "first_order_only", "second derivatives are 0", "peers/FINDINGS.md, liger-kernel 0.8.5: `LigerCrossEntropyLoss`", (TWICE,)),
    Planted("coca_hidden", "WeightOfLastChunk", "the weight's gradient is that of the last chunk", "", (GRADS,)),
    Planted("coca_hidden", "PadsInTheMean", "padding counts in the captions' mean", "", (TERMS,), "sim:2-8"),
    Planted("coca_hidden", "WeightReducedTwice", "the weight's gradient is added up over ranks, and then averaged", "", (GRADS, MEAN), "sim:2-8"),
    Planted("coca_hidden", "PaddedStatesGetGradient", "the hidden states at padding get gradient", "", (PADDING,)),
    Planted("coca_hidden", "ZLossOfOwnTokens", "the z-loss is a mean over this rank's tokens", "", (TERMS,), "sim:2-8"),
    Planted("coca_hidden", "BiasForgotten", "the vocabulary's bias is not used", "", (TERMS,)),
    Planted("clip", "OneDirectionInEval", "in eval mode texts never look for their images", "", (EVAL,), module="objects"),
    Planted("clip", "OwnRowsInEval", "in eval mode other ranks' rows are zeros", "", (EVAL,), "sim:2-8", module="objects"),
    Planted("clip", "StaysInEval", "after eval mode the loss is doubled for good", "", (EVAL,), module="objects"),
    Planted("clip", "LogitsBuffer", "logits lie in a buffer that the next call writes over, before this one's backward", "", (LIVE,), module="objects"),
    Planted("clip", "TemperatureDetached", "a temperature of its own gets no gradient", "", (OWNED,), module="objects"),
    Planted("clip", "TemperatureTwice", "a temperature of its own gets twice its gradient", "", (OWNED,), module="objects"),
    Planted("clip", "TemperatureNaN", "a temperature of its own gets a gradient that is no number", "", (OWNED,), module="objects"),
    Planted("clip", "SavesEveryTile", "tiles are computed one by one, and all kept for backward", f"{OPEN_CLIP}/pull/1214", (STATED,), module="tiles"),
    Planted("clip", "SavesAllLogits", "a rank that sums up its own rows' losses keeps the logits of all rows", f"{OPEN_CLIP}/issues/942", (STATED,), "sim:2-8", options=LOCAL, module="tiles"),
    Planted("clip", "SquareForAMoment", "it saves no logits, and has all of them in memory at once", "", (STATED,), module="tiles"),
    Planted("clip", "ChunksOf1024", "rows beyond the last full chunk of 1,024 are dropped, if there is one", "", (PAIRS,), module="objects"),
    Planted("cross_entropy", "VocabularyOf4096", "classes from 4,096 on are no negatives", "", (LOGITS,), module="objects"),
    Planted("clip", "LogitsToNumbers", "logits that are NaN become 0", "", (NUMBERS,), module="hostile"),
    Planted("siglip", "SkipsBadSteps", "a loss that is no number becomes 0", "", (NUMBERS,), module="hostile"),
    Planted("clip", "ClampsByComparison", "a bound takes the place of NaN", "", (NUMBERS,), module="hostile"),
    Planted("coca", "MeanOfFiniteTokens", "tokens whose loss is NaN are left out", "", (NUMBERS,), seeds=0.9, module="hostile"),
    Planted("distill", "LeavesOutBadRows", "rows that are NaN are left out", "", (NUMBERS,), module="hostile"),
    Planted("siglip", "TextsTimesZero", "other ranks' texts are multiplied by 0: NaN becomes everyone's", MAIN_LOSS, (NUMBERS,), "sim:2-4", module="hostile", stated=True),
    Planted("coca", "TokensTimesMask", "the losses of padding are multiplied by 0", "", (NUMBERS,), seeds=0.9, module="hostile", stated=True),
    Planted("coca", "TermsTimesWeights", "a term of weight 0 is multiplied by it", "", (NUMBERS,), module="hostile", stated=True),
    Planted("clip", "MagnitudeOfScale", "a negative scale loses its sign", "", (NEGATIVE,), module="hostile", stated=True),
    Planted("siglip", "ScaleFromZeroOn", "a negative scale is 0", "", (NEGATIVE,), module="hostile", stated=True),
    Planted("coca", "WeightsFromZeroOn", "a negative weight is 0", "", (NEGATIVE,), module="hostile", stated=True),
    Planted("coca", "LabelsClamped", "a label outside the vocabulary is moved into it", "", (LABELS,), module="hostile", stated=True),
    Planted("coca", "LabelsOfOneRank", "a wrong label raises on its rank alone", "", (LABELS,), "sim:2-4", module="hostile", stated=True, raises="waits in"),
    Planted("clip", "AllocatesFirst", "too large a batch is the allocator's error", "", (OVERFLOW,), module="hostile", stated=True),
    Planted("clip", "GathersTheWorld", "the group is taken, and the world is gathered", "", (GROUP,), "sim:4", module="groups"),
    Planted("clip", "LabelsOfGlobalRank", "labels start where the world counts the rank", "", (GROUP,), "sim:4", raises="out of bounds", module="groups"),
    Planted("clip", "WeighsByWorld", "a row counts by the number of the world's ranks", "", (GROUP,), "sim:4", module="groups"),
    Planted("clip", "SumsOverTheWorld", "the gather's backward sums over the world", "", (GROUP,), "sim:4", raises="all_reduce", options=LOCAL, module="groups"),
    Planted("clip", "DetachedInFunc", "inside of torch.func negatives are constants", "", (FUNC, MAPPED), module="wrapped"),
    Planted("clip", "AsksForRequiresGrad", "a function asks whether its input requires grad, which nothing does inside of torch.vmap", "", (MAPPED,), module="wrapped"),
    Planted("clip", "HookOnLogits", "half of the gradient comes by a hook, which is not set inside of torch.vmap", "", (MAPPED,), module="wrapped"),
    Planted("clip", "MapsTheFirst", "a function's rule for batches takes the first of each", "", (MAPPED,), module="wrapped"),
    Planted("clip", "OfPlainData", "features of a tensor subclass are made plain by their data, and get no gradient", "", (SUBCLASSED,), module="wrapped"),
    Planted("clip", "ParametersAreConstants", "a scale that is a parameter gets no gradient", "", (SUBCLASSED,), module="wrapped"),
    Planted("clip", "LocalPart", "the local part of a DTensor is taken, which gets no gradient", "", (REPLICATED,), module="wrapped"),
    Planted("clip", "WaitsForConstants", "a rank whose rows are constants skips the collective of the backward", "", (FREEZING,), "sim:2-4", raises="waits in", options=LOCAL, module="groups", strict=True),
    Planted("clip", "GivesUpGradients", "where some rows are constants no gradient comes back", "", (FREEZING,), "sim:2-4", options=LOCAL, module="groups"),
    Planted("clip", "AddsUpInHalf", "under autocast exponentials are added up in half precision", "", (TO_BFLOAT16,), module="autocast"),
    Planted("siglip", "RoundsLosses", "under autocast losses are added up in half precision", "", (TO_BFLOAT16, TO_FLOAT16), module="autocast"),
    Planted("clip", "CastsConstants", "under autocast candidates are constants", "", (TO_BFLOAT16, TO_FLOAT16), module="autocast"),
    Planted("clip", "CopiedWithoutFlags", "a deep copy has the defaults of its flags", "", (COPIED,), "sim:2-4", module="objects"),
    Planted("clip", "PickledWithoutTemperature", "what it has learned is not pickled", "", (COPIED,), module="objects"),
]  # fmt: skip

BY_INDUCTOR = [
    Planted("clip", "KeepsRowsWhenCompiled", "compiled, each later batch is counted as the first was", "", (INDUCTOR,), module="wrapped"),
]  # fmt: skip
"""Defects of what is compiled with dynamic shapes, which tests/test_inductor.py asks about."""

HOROVOD = [
    Planted("clip", "AveragesInBackward", "the gather's backward averages where a sum is due", MPI_OPS, (GRADS, MEAN), "hvd:2", options=LOCAL, module="horovod"),
    Planted("clip", "ChunksByWorldSize", "gathered rows are split into equal parts, whatever each rank holds", LOSS, (TERMS, MEAN), "hvd:2", options=(("local_loss", False), ("gather_with_grad", False)), module="horovod"),
]  # fmt: skip
"""Defects of what runs over Horovod."""

CUDA = [
    Planted("clip", "OwnStream", "its own stream does not wait for the inputs", "", (STREAMS,), module="cuda"),
    Planted("clip", "OwnStreamIsNotWaitedFor", "nobody waits for the result of its own stream", "", (STREAMS,), module="cuda"),
    Planted("clip", "DefaultStream", "it scales on the default stream, whichever is the current one", "", (STREAMS,), module="cuda"),
    Planted("clip", "FillsABufferElsewhere", "a buffer is filled on one stream, and read on another", "", (STREAMS,), module="cuda"),
    Planted("clip", "CapturesANumber", "the scale is a number of the host, which a graph keeps", "", (GRAPHS,), module="cuda"),
    Planted("clip", "CachesAtCapture", "what depends on the inputs is kept from an earlier call", "", (GRAPHS,), module="cuda"),
    Planted("clip", "Reads", "the host reads the scale, and it states that it does not wait", "", (WAITS,), module="cuda"),
    Planted("clip", "ReadsInBackward", "the host waits in backward", "", (WAITS,), module="cuda"),
    Planted("clip", "KeepsResults", "every result is kept", "", (MEMORY,), module="cuda"),
    Planted("clip", "KeepsCopies", "a copy of what it was given is kept, of each call", "", (MEMORY,), module="cuda"),
    Planted("clip", "History", "all losses are kept in one tensor, which grows", "", (MEMORY,), module="cuda"),
    Planted("clip", "OwnStreamWaits", module="cuda"),
    Planted("clip", "TwoStreams", module="cuda"),
    Planted("clip", "CachesLabels", module="cuda"),
    Planted("clip", "Scratch", module="cuda"),
    Planted("clip", "LetsGo", module="cuda"),
    Planted("clip", "ReadsAndSaysSo", module="cuda", skips=(GRAPHS, WAITS)),
]  # fmt: skip
"""Defects, and right variants, that the laws of CUDA are asked about, over a stand-in for it."""

RIGHT = [
    Planted("clip", "LogSumExp", module="right"),
    Planted("clip", "PositivesApart", module="right"),
    Planted("clip", "LogitTakenFirst", module="right"),
    Planted("clip", "LogSoftmaxDiagonal", module="right"),
    Planted("clip", "KeepsHalf", module="right"),
    Planted("clip", "MeanTimesCount", module="right"),
    Planted("clip", "OneHotTargets", module="right"),
    Planted("clip", "ShiftedByAnything", module="right"),
    Planted("clip", "RowChunks", module="right"),
    Planted("clip", "OnlineSoftmax", module="right"),
    Planted("clip", "ColumnByColumn", module="right"),
    Planted("clip", "Tiled", module="tiles"),
    Planted("clip", "Shared", options=LOCAL, empty_ranks=True, module="ranks", skips=(SILENT,)),
    Planted("clip", "PartsGathered", options=LOCAL, empty_ranks=True, module="ranks", skips=(SILENT,)),
    Planted("clip", "ScaleOfThisRank", options=LOCAL, empty_ranks=True, module="ranks", skips=(SILENT,)),
    Planted("clip", "StatesSquares", module="tiles"),
    Planted("clip", "StatesOwnLogits", options=LOCAL, module="tiles", asked=(STATED, TERMS)),
    Planted("clip", "ExponentialsOfTwo", module="right"),
    Planted("clip", "ManualBackward", module="right"),
    Planted("clip", "KahanSum", module="right"),
    Planted("clip", "RowByRow", module="right"),
    Planted("clip", "PairwiseSum", module="right"),
    Planted("clip", "SortedSum", module="right"),
    Planted("clip", "ReversedColumns", module="right"),
    Planted("clip", "Einsum", module="right"),
    Planted("clip", "TransposedProduct", module="right"),
    Planted("clip", "ScalesProduct", module="right"),
    Planted("clip", "BiasInPlace", module="right"),
    Planted("clip", "ColumnBlocks", module="right"),
    Planted("clip", "Outer", module="right"),
    Planted("clip", "Float64Inside", module="right"),
    Planted("clip", "SinglePrecision", module="right", dtypes=("float32", "bfloat16", "float16")),
    Planted("clip", "AutocastSafe", module="right"),
    Planted("clip", "Compiled", module="right"),
    Planted("clip", "OwnFirstUndone", module="right"),
    Planted("clip", "OwnFirst", module="right"),
    Planted("clip", "BothInOneMessage", module="right"),
    Planted("clip", "TextFirst", module="right"),
    Planted("clip", "CountsByObjects", module="right"),
    Planted("clip", "IntoTensor", module="right"),
    Planted("clip", "ByBroadcasts", module="right"),
    Planted("clip", "BySum", module="right"),
    Planted("clip", "ByAllToAll", module="right"),
    Planted("clip", "RoundTheRing", module="right"),
    Planted("clip", "ReduceScatterInBackward", module="right"),
    Planted("clip", "PassesArgumentsOn", module="right"),
    Planted("clip", "UpstreamsArgumentsPassedOn", module="right"),
    Planted("clip", "HoldsClip", module="right"),
    Planted("clip", "makes_clip", module="right"),
    Planted("clip", "CosineSimilarity", features="normalized", module="forms"),
    Planted("siglip", "SigLipHoldsLogarithm", features="normalized", held=LOGARITHM, module="forms"),
    Planted("infonce", "InfoNCETakesUnit", features="unit", module="forms"),
    Planted("ntxent", "NTXentOfDots", features="raw", module="forms"),
    Planted("clip", "DividesByTemperature", held=(("logit_scale", "inverse"),), module="forms"),
    # in float16 the gradient of 1 / scale is infinite from a scale of 150 on
    Planted("clip", "NeedsPositiveScale", scales="positive", dtypes=("float64", "float32", "bfloat16"), module="forms"),
    Planted("clip", "TakesEmptyRanks", empty_ranks=True, module="right"),
    Planted("siglip", "TakesEmptyRanksToo", empty_ranks=True, module="right"),
    Planted("siglip", "HoldsSigLip", module="right"),
    Planted("coca", "MasksTokens", module="right"),
    Planted("coca", "CoCaKeepsHalf", module="right"),
    Planted("coca", "CoCaKeepsHalfOfPairs", module="right"),
    Planted("coca", "HalfZero", module="right"),
    Planted("coca", "ClassesSecond", module="right"),
    Planted("coca", "NegativeLogLikelihood", module="right"),
    Planted("coca", "PadsBecomeMinus100", module="right"),
    Planted("coca", "CaptionByCaption", module="right"),
    Planted("coca", "CountsTokensByGather", module="right"),
    Planted("coca", "WeightsTokens", module="right"),
    Planted("distill", "SoftTargets", module="right"),
    Planted("distill", "DistillKeepsHalf", module="right"),
    Planted("distill", "DetachedTeacher", module="right"),
    Planted("distill", "ExpectedLogit", module="right"),
    Planted("distill", "DivergencePlusEntropy", module="right"),
    Planted("distill", "TeacherByExpLog", module="right"),
    Planted("siglip", "LogAddExp", module="right"),
    Planted("siglip", "BinaryCrossEntropy", module="right"),
    Planted("siglip", "BinaryCrossEntropyInHalf", module="right"),
    Planted("siglip", "Log1pExp", module="right"),
    Planted("siglip", "ImageByImage", module="right"),
    Planted("siglip", "AllTextsAtOnce", module="right"),
    Planted("siglip", "BothWaysRound", module="right"),
    Planted("siglip", "DirectlyFromEach", module="right"),
    Planted("siglip", "ManualSigmoid", module="right"),
    Planted("gather", "gather_into_tensor", module="right"),
    Planted("gather", "gather_by_broadcasts", module="right"),
    Planted("gather", "gather_by_sum", module="right"),
    Planted("gather", "gather_by_all_to_all", module="right"),
    Planted("gather", "gather_round_the_ring", module="right"),
    Planted("gather", "gather_reduce_scatter", module="right"),
    Planted("gather", "gather_own_first_undone", module="right"),
    Planted("gather", "gather_views", module="right"),
    Planted("exchange", "exchange_by_gather", module="right"),
    Planted("exchange", "exchange_in_the_world", module="right", asked=(TERMS, COTANGENTS, GROUP)),
    Planted("exchange", "exchange_copies", module="right"),
    Planted("exchange", "exchange_singly", module="right"),
    Planted("exchange", "exchange_even_first", module="right"),
    Planted("exchange", "bidir_in_one_batch", module="right", options=(("bidirectional", True),)),
    Planted("exchange", "bidir_other_order", module="right", options=(("bidirectional", True),)),
    Planted("linear_cross_entropy", "chunked"),
    Planted("linear_cross_entropy", "dense", options=(("z_loss", 0.0),)),
    Planted("linear_cross_entropy", "vocabulary_in_chunks", options=(("label_smoothing", 0.0), ("z_loss", 0.0))),
    Planted("coca_hidden", "CoCaHidden", asked=(TERMS, GRADS, MEAN, TWICE, PADDING, NUMBERS)),
    Planted("coca_hidden", "LogitsInside", asked=(TERMS, GRADS, MEAN, TWICE, PADDING)),
    Planted("coca_hidden", "ChunksOfThree", options=(("tile_size", 1), ("label_smoothing", 0.0), ("z_loss", 0.0)), asked=(TERMS, GRADS, MEAN, TWICE, PADDING)),
    Planted("infonce", "InfoNCE", module="cosine"),
    Planted("ntxent", "NTXent", module="cosine"),
    Planted("clip", "InGroup", module="groups", asked=(GROUP, MEAN)),
    Planted("clip", "EveryoneAnswers", module="groups", strict=True, asked=(FREEZING, MEAN)),
    Planted("coca", "StatesAll", module="hostile", stated=True, asked=(NUMBERS, NEGATIVE, LABELS, OVERFLOW, REPLICATED)),
    Planted("clip", "RefusesNoNumbers", module="hostile", asked=(NUMBERS, TERMS)),
    Planted("clip", "LogSumExpForFunc", module="wrapped", asked=(FUNC, MAPPED)),
    Planted("clip", "ReadsItsScale", module="wrapped", asked=(FUNC, MAPPED)),
    Planted("clip", "PlainFirst", module="wrapped", asked=(SUBCLASSED, REPLICATED)),
    Planted("clip", "TakesPlainTensorsAlone", module="wrapped", asked=(SUBCLASSED, REPLICATED)),
    Planted("clip", "WholeFirst", module="wrapped", asked=(REPLICATED, TERMS)),
    Planted("clip", "OtherSumInEval", module="objects"),
    Planted("clip", "RefusesCopies", module="objects", asked=(COPIED,)),
    Planted("clip", "OwnsTemperature", module="objects"),
    Planted("clip", "OwnsInSingle", module="objects"),
    Planted("cross_entropy", "CrossEntropy", module="cosine"),
    Planted("cross_entropy", "RefusesEmptyMean", module="objects"),
    Planted("cross_entropy", "EveryLabelCounts", skips=(PADDING,), options=(("ignore_index", None),), module="cosine"),
]  # fmt: skip

EXCEPTED = [
    ("local_loss without gather_with_grad gives biased gradients", f"{OPEN_CLIP}/issues/894", "a configuration that the contract models: its gradients are what its oracle says, and the loss warns"),
    ("the bias is added in place, twice to the transposed view", LOSS, "InfoNCE does not change with a bias, and no contract reads logits"),
    ("ranks of different dtypes end the process", LOSS, "ranks of one case share a dtype; tests/test_arguments.py has ranks that disagree"),
    ("labels are cached by one number for all devices", LOSS, "needs labels on two devices"),
    ("the label cache changes under torch.compile", f"{OPEN_CLIP}/commit/3650e7b", "one call is compiled a case, unless inductor is asked for; KeepsRowsWhenCompiled is then caught"),
    ("own texts are scored, then multiplied by 0: infinity becomes NaN", MAIN_LOSS, "what others do with infinities is not judged; TextsTimesZero does this to NaN"),
    ("point-to-point exchanges do not compile", LOSS, "compilation may break the graph"),
    ("the losses take no process group", LOSS, "a loss that takes no group is not asked about groups"),
    ("a negative chunk_size and an empty batch are not refused", MAIN_LOSS, "arguments that must be refused are in tests/test_arguments.py"),
    ("the logits of all ranks are kept", f"{OPEN_CLIP}/issues/942", "memory, not values"),
    ("the model does not return its bias", f"{OPEN_CLIP}/pull/725", "a model's forward"),
    ("accumulation takes keys for features", f"{OPEN_CLIP}/pull/419", "a trainer's: accumulation over batches"),
    ("rank 0's part of a local loss is logged for the whole", f"{OPEN_CLIP}/commit/bfb1975", "a trainer's: what is logged"),
    ("the import fails on Windows", f"{OPEN_CLIP}/commit/9078293", "an import on a system without torch.distributed"),
    ("FSDP needs a tensor of its own for the bias", f"{OPEN_CLIP}/commit/4f8c6cd", "FSDP's parameters"),
    ("gloo has no reduce_scatter", f"{TORCH}/pull/149869", "a backend's"),
    ("two log-sum-exps are added where one is due", f"{LIGHTLY}/commit/0111edc9", "another loss"),
    ("the memory bank is not normalised", f"{LIGHTLY}/commit/7891ae77", "a memory bank"),
    ("two views share the statistics that normalise them", f"{LIGHTLY}/commit/39628df1", "another loss: statistics of two views"),
]  # fmt: skip
"""Known defects without a re-creation here: the defect, its source, and the reason."""
