"""What is wrong with each of these losses, and where it was seen."""

from verified_losses.properties.cases import DTYPES
from verified_losses.properties.forms import Form
from verified_losses.properties.names import FORMULAS
from verified_losses.properties.own.formula import formula
from verified_losses.properties.subjects import Subject

from ..index import FRESH, GRADS, LIGHTLY, MEAN, PAIRS, SENTENCE, TERMS, TORCH, TWICE, Planted

__all__ = ["DEFECTS", "RIGHT"]


class Kind(Planted):
    """A function, or a module that holds something, called by the names of its contract's formula."""

    @property
    def subject(self) -> Subject:
        """As a stranger's loss is certified."""
        held_to, target = formula(self.contract), f"tests.defects.{self.module}:{self.name}"
        if held_to.holds:
            tensors = [one for one, kind in held_to.inputs.items() if kind.is_tensor and one != held_to.holds]
            given = ", ".join(f"{name}={name}" for name in tensors)
            form = Form(f"in_turn(target, {held_to.holds}, {given})")
        else:
            is_class = self.name[0].isupper()
            given = ", ".join(
                f"{name}={name}" for name, kind in held_to.inputs.items() if kind.is_tensor or not is_class
            )
            form = Form(f"target({given})", constructed=is_class)
        gathers = self.world != "1"
        return Subject(target, even=self.even, dtypes=self.dtypes, gathers=gathers, form=form)


SUPCON = "https://github.com/HobbitLong/SupContrast"
MOBILECLIP = "https://github.com/apple/ml-mobileclip"
RANKS = "sim:2-4"


def wrong(
    kind: str, name: str, what: str, source: str = "", *caught_by: str, world: str = "1", module: str = ""
) -> Kind:
    """Return a defect, which its terms show unless said otherwise."""
    where = f"kinds.{module or kind}"
    return Kind(FORMULAS[kind], name, what, source, caught_by or (TERMS,), world, even=True, module=where)


def right(kind: str, name: str, world: str = "1", module: str = "", dtypes: tuple[str, ...] = DTYPES) -> Kind:
    """Return a right variant."""
    where = f"kinds.{module or kind}"
    return Kind(FORMULAS[kind], name, world=world, even=True, module=where, dtypes=dtypes)


DEFECTS = [
    wrong("supcon", "counts_itself", "an anchor is among what it is compared with"),
    wrong("supcon", "is_its_own_positive", "an anchor is its own positive"),
    wrong("supcon", "over_negatives_alone", "positives are not in the denominator"),
    wrong("supcon", "log_of_the_mean", "the logarithm of the mean over positives, not the mean of logarithms"),
    wrong("supcon", "over_all_positives", "a mean over all positive pairs, not over anchors"),
    wrong("supcon", "labels_in_their_dtype", "labels travel in the features' dtype, where 2,048 and 2,049 are one"),
    wrong("supcon", "base_temperature", "the loss is scaled by temperature / 0.07", SUPCON),
    wrong("supcon", "epsilon_in_log", "log(sum + 1e-4)"),
    wrong("supcon", "largest_with_itself", "an anchor's own logit is subtracted, beside which others underflow", SUPCON),
    wrong("supcon", "own_rows_alone", "rows are gathered, and not used", "", TERMS, MEAN, world=RANKS),
    wrong("supcon", "no_offset", "a rank leaves out the rows of rank 0 in the place of its own", "", TERMS, world=RANKS),
    wrong("supcon", "gathered_once", "the gather's backward has no derivative", "", TWICE, world=RANKS),
    wrong("multi_positive", "not_normalized", "targets do not sum up to 1"),
    wrong("multi_positive", "one_direction", "texts never look for their images"),
    wrong("multi_positive", "diagonal_alone", "labels are not looked at"),
    wrong("multi_positive", "softmax_of_the_mask", "targets are a softmax of zeros and ones"),
    wrong("multi_positive", "temperature_once", "the temperature is missing in one direction"),
    wrong("multi_positive", "mean_over_pairs", "a mean over positive pairs, not over rows"),
    wrong("hard_negatives", "own_negatives_alone", "other queries' negatives are left out"),
    wrong("hard_negatives", "labels_hit_negatives", "positives and negatives alternate, and labels count on", f"{SENTENCE}/pull/3453"),
    wrong("hard_negatives", "negatives_unscaled", "the temperature is missing for negatives"),
    wrong("hard_negatives", "negatives_detached", "negatives get no gradient", "", GRADS),
    wrong("hard_negatives", "first_negative_alone", "of several negatives the first counts"),
    wrong("hard_negatives", "sum_over_queries", "a sum over queries"),
    wrong("queue", "label_is_the_last", "the label is the last column, the key the first"),
    wrong("queue", "queue_unscaled", "the temperature is missing for the queue"),
    wrong("queue", "mean_similarity", "a query and its key are compared by a mean"),
    wrong("queue", "without_its_key", "the key is not in the denominator"),
    wrong("queue", "keys_of_the_batch_too", "other keys of the batch are negatives"),
    wrong("queue", "newest_left_out", "the last of the queue is left out", "https://github.com/facebookresearch/moco/issues/99"),
    wrong("held_queue", "EnqueuesFirst", "keys are put into the queue before the loss"),
    wrong("held_queue", "PointerStays", "the pointer is not advanced"),
    wrong("held_queue", "PointerMovesByOne", "the pointer is advanced by one, not by the batch"),
    wrong("held_queue", "KeepsGraph", "the queue keeps the graphs of its keys", "", GRADS),
    wrong("held_queue", "KeysWithGradient", "keys get a gradient", "", GRADS),
    wrong("held_queue", "NeverEnqueues", "the queue stays as it is"),
    wrong("held_queue", "EnqueuesQueries", "queries are put into the queue"),
    wrong("held_queue", "EnqueuesOwnRows", "keys are gathered, and each rank puts its own into its queue", "", TERMS, MEAN, world=RANKS),
    wrong("cached", "mean_of_means", "the mean of chunks' means: the last one is shorter"),
    wrong("cached", "keys_of_the_chunk", "negatives are those of the chunk"),
    wrong("cached", "drops_the_last", "rows beyond whole chunks are left out"),
    wrong("cached", "labels_of_the_chunk", "labels begin at 0 in every chunk"),
    wrong("cached", "keys_of_the_last_chunk", "keys get the gradient of the last chunk alone", "", GRADS),
    wrong("cached", "StaleCache", "gradients of the first batch of a shape are kept", "", FRESH),
    wrong("smoothed", "smoothed_over_others", "the label has no share of what is spread", module="soft_targets"),
    wrong("smoothed", "smoothed_by_a_sum", "a sum over classes, not their mean", module="soft_targets"),
    wrong("smoothed", "smoothing_of_a_tenth", "the smoothing is 0.1, whichever is given", module="soft_targets"),
    wrong("smoothed", "label_whole", "the label keeps its whole weight", module="soft_targets"),
    wrong("smoothed", "smoothing_without_gradient", "the mean over classes is detached", "", GRADS, module="soft_targets"),
    wrong("softened", "without_square", "not multiplied by the square of the temperature", module="soft_targets"),
    wrong("softened", "times_temperature_once", "multiplied by the temperature once", module="soft_targets"),
    wrong("softened", "reversed_divergence", "the divergence of the teacher from the student", module="soft_targets"),
    wrong("softened", "mean_over_classes", "a mean over rows and classes", f"{TORCH}/issues/36862", module="soft_targets"),
    wrong("softened", "student_at_one", "the student's logits are not divided", module="soft_targets"),
    wrong("softened", "over_rows", "a softmax over rows", module="soft_targets"),
    wrong("softened", "slope_kept", "the gradient is kept from the forward as a constant", "", TWICE, module="soft_targets"),
    wrong("momentum", "alpha_swapped", "alpha is the labels' share", module="soft_targets"),
    wrong("momentum", "targets_transposed", "texts' targets are the transpose of the images'", MOBILECLIP, module="soft_targets"),
    wrong("momentum", "momentum_at_one", "the temperature is missing in the targets", module="soft_targets"),
    wrong("momentum", "of_itself", "the targets are the model's own", module="soft_targets"),
    wrong("momentum", "among_own_keys", "the keys are the model's own, not the momentum model's", module="soft_targets"),
    wrong("momentum", "not_halved", "the sum of both directions", module="soft_targets"),
    wrong("masked", "not_masked", "false negatives count"),
    wrong("masked", "gradient_of_false_negatives", "the backward pushes false negatives away", "", GRADS),
    wrong("masked", "logit_of_zero", "false negatives get a logit of 0"),
    wrong("masked", "masks_later_ones", "false negatives that come first count"),
    wrong("masked", "after_the_softmax", "false negatives are masked after the softmax"),
    wrong("masked", "positives_too", "the positive is masked too"),
    wrong("masked", "drops_masked_rows", "of an identity the first query counts"),
    wrong("masked", "keys_beyond_a_chunk_left_out", "keys come in chunks of 1,024, and a last one is left out", "", PAIRS),
    wrong("decoupled", "coupled", "the positive is in the denominator"),
    wrong("decoupled", "two_log_sum_exps", "the sum of two log-sum-exps", f"{LIGHTLY}/commit/0111edc9"),
    wrong("decoupled", "other_view_alone", "negatives of the same view are left out"),
    wrong("decoupled", "first_view_alone", "the second view's rows are no anchors"),
    wrong("decoupled", "counts_itself", "an anchor is among its negatives"),
    wrong("decoupled", "positive_unscaled", "the temperature is missing for the positive"),
    wrong("debiased", "biased", "the negatives are taken as they are", module="decoupled"),
    wrong("debiased", "least_without_count", "the least is that of one negative", module="decoupled"),
    wrong("debiased", "not_divided", "not divided by 1 - tau_plus", module="decoupled"),
    wrong("debiased", "one_positive_taken", "the positive is taken away once, not for each negative", module="decoupled"),
    wrong("debiased", "share_of_a_tenth", "tau_plus is 0.1, whichever is given", module="decoupled"),
    wrong("matryoshka", "normalized_once", "prefixes are not normalised anew"),
    wrong("matryoshka", "mean_over_prefixes", "a mean over prefixes"),
    wrong("matryoshka", "suffixes", "the last elements in the place of the first"),
    wrong("matryoshka", "longest_alone", "the longest prefix alone"),
    wrong("matryoshka", "one_too_short", "each prefix lacks its last element"),
    wrong("matryoshka", "key_detached", "keys get no gradient", "", GRADS),
    wrong("triplet", "not_squared", "distances are not squared", module="margin"),
    wrong("triplet", "swapped", "positive and negative are swapped", module="margin"),
    wrong("triplet", "margin_taken_away", "the margin is taken away", module="margin"),
    wrong("triplet", "mean_over_active", "a mean over the triplets that are not met", module="margin"),
    wrong("triplet", "no_hinge", "triplets that are met count", module="margin"),
    wrong("triplet", "softplus", "softplus in the place of the hinge", module="margin"),
    wrong("max_margin", "with_itself", "pairs are compared with themselves", module="margin"),
    wrong("max_margin", "hardest_alone", "the hardest negative alone counts", module="margin"),
    wrong("max_margin", "one_direction", "texts never look for their images", module="margin"),
    wrong("max_margin", "both_of_images", "the images' direction twice", module="margin"),
    wrong("max_margin", "mean_over_pairs", "a mean over all pairs", module="margin"),
    wrong("sigmoid_mean", "sum_over_texts", "a sum over texts, as SigLIP has it"),
    wrong("sigmoid_mean", "signs_swapped", "partners are negatives"),
    wrong("sigmoid_mean", "without_bias", "the bias is not added"),
    wrong("sigmoid_mean", "bias_scaled", "the scale multiplies the bias too"),
    wrong("sigmoid_mean", "balanced", "partners are weighted by the number of the others"),
    wrong("sigmoid_mean", "labels_of_ones", "all pairs are partners"),
]  # fmt: skip

RIGHT = [
    *(right("supcon", name) for name in ("supcon", "by_anchor")),
    right("supcon", "gathered", RANKS),
    *(right("multi_positive", name) for name in ("multi_positive", "by_log_sum_exp")),
    right("multi_positive", "gathered", RANKS),
    *(right("hard_negatives", name) for name in ("hard_negatives", "interleaved")),
    right("hard_negatives", "gathered", RANKS),
    *(right("queue", name) for name in ("moco", "by_log_sum_exp")),
    *(right("held_queue", name) for name in ("HeldQueue", "Shifted")),
    right("held_queue", "Gathered", RANKS),
    *(right("cached", name) for name in ("cached", "at_once", "in_turn")),
    *(right("smoothed", name, module="soft_targets") for name in ("smoothed", "smoothed_by_parts")),
    *(right("softened", name, module="soft_targets") for name in ("softened", "softened_by_entropies")),
    *(right("momentum", name, module="soft_targets") for name in ("momentum", "momentum_by_parts")),
    *(right("masked", name) for name in ("masked", "by_weights")),
    right("masked", "gathered", RANKS),
    *(right("decoupled", name) for name in ("decoupled", "by_direction")),
    right("decoupled", "gathered", RANKS),
    *(right("debiased", name, module="decoupled") for name in ("debiased", "debiased_by_log_sum_exp")),
    *(right("matryoshka", name) for name in ("matryoshka", "by_cosines")),
    right("matryoshka", "gathered", RANKS),
    *(right("triplet", name, module="margin") for name in ("triplet", "triplet_by_module")),
    right("max_margin", "max_margin", module="margin"),
    # the backward of an index adds up in half precision on a CPU: a row's gradient is off by 2% of it
    right("max_margin", "max_margin_by_pair", module="margin", dtypes=("float64", "float32")),
    *(right("sigmoid_mean", name) for name in ("sigmoid_mean", "by_signs")),
    Kind("tests.defects.kinds.alignment:alignment", "by_distances", even=True, module="kinds.alignment"),
]
