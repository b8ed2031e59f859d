"""What each loss is held to, and what is wrong with those that are defective."""

from collections.abc import Callable
from typing import Any, NamedTuple

from . import right, wrong

TERMS, GRADIENTS = "terms equal the oracle", "gradients equal the oracle"
COTANGENTS, FRESH = "cotangents pass through", "used equals fresh"


class Stranger(NamedTuple):
    """A loss, and the options of the command that the README has for it."""

    target: Callable[..., Any]
    contract: str
    wrong: str = ""
    caught_by: str = TERMS
    """The first property that does not hold, where something is wrong."""
    options: dict[str, Any] = {}
    limit: str = ""
    """What it is taken for, where that is no defect unless the command is asked to be strict."""


UPSTREAM = {"convention": "open_clip"}

RIGHT = [
    Stranger(right.clip_from_vectors, "clip"),
    Stranger(right.CLIPHead, "clip"),
    Stranger(right.KeywordOnly, "clip"),
    Stranger(right.GlobalBatch, "clip"),
    Stranger(right.ShardedRows, "clip"),
    Stranger(right.OwnRowsCarryGradient, "clip", options=UPSTREAM),
    Stranger(right.Streamed, "clip"),
    Stranger(right.CachesLabels, "clip"),
    Stranger(right.FullPrecision, "clip"),
    Stranger(right.ReturnsObject, "clip"),
    Stranger(right.TakesBias, "clip"),
    Stranger(right.soft_targets, "clip"),
    Stranger(right.by_hand, "clip"),
    Stranger(right.OfBatch, "clip"),
    Stranger(right.ShiftsByMaximum, "clip"),
    Stranger(right.OfLogits, "clip"),
    Stranger(right.SigmoidLoss, "siglip"),
    Stranger(right.sigmoid_pairs, "siglip"),
    Stranger(right.SigmoidGathered, "siglip"),
    Stranger(right.SigmoidChunks, "siglip"),
    Stranger(right.positives_and_negatives, "siglip"),
    Stranger(right.from_logits, "siglip"),
    Stranger(right.Captioner, "coca"),
    Stranger(right.CaptionerOfTokens, "coca"),
    Stranger(right.DistilledClip, "distill"),
    Stranger(right.distill_by_dict, "distill"),
    Stranger(right.info_nce_loss, "infonce"),
    Stranger(right.QueryKey, "infonce"),
    Stranger(right.Retrieval, "infonce"),
    Stranger(right.per_example, "infonce"),
    Stranger(right.CrossBatch, "infonce"),
    Stranger(right.ranking, "infonce"),
    Stranger(right.SimCLRCriterion, "ntxent"),
    Stranger(right.nt_xent_interleaved, "ntxent"),
    Stranger(right.NTXentHalfSafe, "ntxent"),
    Stranger(right.NTXentGathered, "ntxent"),
    Stranger(right.SupervisedContrast, "ntxent"),
    Stranger(right.token_loss, "cross_entropy"),
    Stranger(right.VocabularyInChunks, "cross_entropy"),
    Stranger(
        right.gather_features,
        "gather",
        options={"config": (("local_loss", False), ("gather_with_grad", True))},
    ),
]

WRONG = [
    Stranger(wrong.EveryRankFromZero, "clip", "labels of every rank start at 0"),
    Stranger(wrong.one_direction_unscaled, "clip", "texts are compared without the temperature"),
    Stranger(wrong.SameDirectionTwice, "clip", "both softmaxes are over the same axis of the logits"),
    Stranger(
        wrong.GathersConstants,
        "clip",
        "gathered rows are constants, which no weight can make up for",
        GRADIENTS,
    ),
    Stranger(wrong.ScalesTwice, "clip", "the scale is multiplied in twice"),
    Stranger(wrong.texts_are_constants, "clip", "texts get no gradient as candidates", GRADIENTS),
    Stranger(
        wrong.DividesByRanksToo, "clip", "the loss is divided by the number of ranks, as DDP does already"
    ),
    Stranger(wrong.ScaleWithoutGradient, "clip", "the scale is read from .data, and never learns", GRADIENTS),
    Stranger(wrong.LogarithmAsScale, "clip", "the exponential of the scale's logarithm is forgotten"),
    Stranger(
        wrong.EpsilonUnderRoot, "clip", "an epsilon under the root shortens rows", limit="rounding in float64"
    ),
    Stranger(wrong.DropsOut, "clip", "features are dropped out, always"),
    Stranger(wrong.NormalizesInPlace, "clip", "the caller's features are overwritten", GRADIENTS),
    Stranger(wrong.image_to_text_alone, "clip", "texts never look for their images"),
    Stranger(wrong.OwnRowsFirst, "clip", "own rows come first, and labels follow the order of ranks"),
    Stranger(wrong.normalizes_columns, "clip", "columns are normalised instead of rows"),
    Stranger(
        wrong.KeepsOwnGradient, "clip", "the gather's backward drops what other ranks have found", GRADIENTS
    ),
    Stranger(
        wrong.incoming_gradient_forgotten,
        "clip",
        "the hand-written backward takes the incoming gradient for 1",
        COTANGENTS,
    ),
    Stranger(wrong.exponentials_as_they_are, "clip", "exponentials overflow"),
    Stranger(wrong.Smoothes, "clip", "labels are smoothed by a tenth"),
    Stranger(wrong.RunningMean, "clip", "divides by a running mean that each call changes", FRESH),
    Stranger(wrong.LastChunkDropped, "clip", "rows beyond the last full chunk are left out"),
    Stranger(wrong.not_transposed, "clip", "the logits of the texts are not transposed"),
    Stranger(wrong.SignsSwapped, "siglip", "positives have the sign of negatives"),
    Stranger(wrong.BiasForgotten, "siglip", "the bias is there, and not added"),
    Stranger(wrong.TextsOfOneRank, "siglip", "every rank takes its positives at the place of rank 0's"),
    Stranger(wrong.sigmoid_of_mean, "siglip", "a mean over pairs instead of a sum over pairs for each image"),
    Stranger(
        wrong.AccumulatesInHalf, "siglip", "losses are added up in the precision of the features", GRADIENTS
    ),
    Stranger(wrong.MeanOverPads, "coca", "padding counts in the captions' mean"),
    Stranger(wrong.CaptionByCaption, "coca", "a mean of the captions' means"),
    Stranger(wrong.DivergenceForCrossEntropy, "distill", "a divergence, which lacks the teacher's entropy"),
    Stranger(wrong.TeacherLearns, "distill", "the teacher is not detached", GRADIENTS),
    Stranger(wrong.wrong_axis, "infonce", "the softmax is over queries"),
    Stranger(wrong.PositiveTwice, "infonce", "the positive is among the negatives"),
    Stranger(wrong.times_temperature, "infonce", "cosines are multiplied by the temperature"),
    Stranger(wrong.EpsilonInLogarithm, "infonce", "an epsilon in the logarithm cuts the loss off"),
    Stranger(
        wrong.PartnersOfFirstBatch, "ntxent", "partners of a larger batch are kept for a smaller one", FRESH
    ),
    Stranger(wrong.mask_is_off_by_one, "ntxent", "the mask hides the neighbours of the diagonal"),
    Stranger(wrong.ComparesWithItself, "ntxent", "each view is its own negative"),
    Stranger(wrong.MaskedByTen, "ntxent", "ten less is not masked at a low temperature"),
    Stranger(wrong.ignored_labels_count, "cross_entropy", "ignored labels count in the mean"),
]
