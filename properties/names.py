"""The names of contracts, options, dtypes and layouts.

Imports neither torch nor NumPy: arguments are checked against these names before torch is imported, which
takes seconds.
"""

import difflib
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

from verified_losses.oracles import dtypes

Convention = Literal["exact", "open_clip"]
"""Whose gradients a loss has: those of one process, or upstream's."""
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
DTYPES = tuple(dtypes.DTYPES)
HALVES = tuple(name for name, kind in dtypes.DTYPES.items() if kind.accumulated != name)
"""The dtypes that are added up in a wider one."""
Features = Literal["", "raw", "normalized", "unit"]
"""What a loss does with rows of features: what its contract says; takes them as they are; normalises them; or
gets rows that the caller has normalised, whatever it does with them."""
FEATURE_KINDS: tuple[Features, ...] = get_args(Features)
Holding = Literal["exp", "inverse", "exp_negative", "softplus", "inverse_softplus"]
"""How an input s follows from what a loss holds, t: exp(t), 1 / t, exp(-t), softplus(t) or its inverse."""
HOLDINGS: tuple[Holding, ...] = get_args(Holding)
Held = tuple[tuple[str, Holding], ...]
"""The inputs that a loss holds in another form, and in which."""
Scales = Literal["positive", "any", "one"]
"""The logit scales that a loss takes: those above 0 alone, or 0 too; or 1, where it takes none."""

STRIDES = ("contiguous", "transposed", "sliced", "narrowed", "shortened")

FLAGS = (False, True)
DIST_IMPLS = ("bidir", "shift", "reduce", "gather")
Values = dict[str, tuple[Any, ...] | type]
"""By option: one of these values, or any number of this type."""
GATHERS: Values = {
    "convention": CONVENTIONS,
    **dict.fromkeys(("local_loss", "gather_with_grad", "cache_labels", "use_horovod"), FLAGS),
}
"""The options of a loss that gathers."""
FORMS: Values = {"implementation": ("auto", "dense", "streamed", "triton"), "tile_size": int}
"""The options of a loss that has several forms."""
CONTRACTS: dict[str, Values] = {
    "clip": GATHERS | FORMS,
    "coca": GATHERS | FORMS | {"clip_loss_weight": float, "caption_loss_weight": float, "pad_id": int},
    "coca_hidden": GATHERS
    | FORMS
    | dict.fromkeys(("clip_loss_weight", "caption_loss_weight", "label_smoothing", "z_loss"), float)
    | {"pad_id": int},
    "distill": GATHERS | FORMS,
    "siglip": FORMS
    | {
        "dist_impl": (*DIST_IMPLS, None),
        "chunk_size": int,
        "cache_labels": FLAGS,
        "use_horovod": FLAGS,
    },
    "gather": GATHERS,
    "exchange": {"bidirectional": FLAGS},
    "infonce": GATHERS,
    "ntxent": GATHERS,
    "cross_entropy": {"ignore_index": int},
    "linear_cross_entropy": {
        "ignore_index": int,
        "chunk_size": int,
        "reduction": ("mean", "sum"),
        "label_smoothing": float,
        "z_loss": float,
    },
}
"""The contracts, and the values that the options of each may have; `contracts` and `oracles` have a module of
each name."""


FORMULAS = {
    name: f"verified_losses.properties.kinds:{name}"
    for name in (
        "supcon", "multi_positive", "hard_negatives", "queue", "held_queue", "cached", "smoothed", "softened",
        "momentum", "masked", "decoupled", "debiased", "matryoshka", "triplet", "max_margin", "sigmoid_mean",
    )
}  # fmt: skip
"""Contracts that are formulas, and where each is."""


def values_of(contract: str) -> Values:
    """Return the values of each option of a contract, which may be a formula: file.py:name.

    Raises:
        NoFormula: there is no such formula.
    """
    if ":" not in contract:
        return CONTRACTS[contract]
    from .own.formula import formula  # NumPy and the file are loaded only where they are asked for
    from .own.kinds import Choice

    return {name: kind.values for name, kind in formula(contract).inputs.items() if isinstance(kind, Choice)}


COMPILED = ("compiled keeps dtypes", "compiled equals eager", "inductor equals the oracle")
"""The names of those properties that compile a loss."""
LAWS = (
    "terms equal the oracle",
    "gradients equal the oracle",
    "cotangents pass through",
    "twice differentiable",
    "bfloat16 autocast equals the oracle",
    "float16 autocast equals the oracle",
    *COMPILED,
    "mean over ranks equals single process",
    "second derivatives travel",
    "backward is silent",
    "a group is a world of its own",
    "some ranks may freeze inputs",
    "inputs unchanged",
    "outputs well formed",
    "deterministic",
    "leaves no trace",
    "used equals fresh",
    "eval equals train",
    "copies are the same",
    "two graphs at once",
    "owned parameters get gradients",
    "takes no more memory than stated",
    "torch.func equals autograd",
    "scales may be mapped",
    "subclasses equal tensors",
    "DTensors equal tensors",
    "padding never matters",
    "NaN spreads as the formula says",
    "negative numbers equal the oracle",
    "wrong labels are named",
    "sizes beyond an index are named",
    "large batches equal the oracle",
    "large logits equal the oracle",
    "other streams equal the default",
    "replayed equals eager",
    "never waits for the device",
    "memory is returned",
)
"""The names of the properties, as `laws.laws` lists them."""


STEP = "step"
"""What `--as` names a training step."""
STEP_LAWS = (
    "gradients equal one process",
    "parameters equal one process",
    "buffers equal one process",
    "logged loss is the mean",
    "every parameter gets a gradient",
    "ranks agree",
    "used equals fresh",
    "loss scale never matters",
    "RNG states are as promised",
    "random draws equal one process",
    "unequal rows equal one process",
)
"""The names of the properties of a training step, as `step.laws.laws` lists them."""
STEP_DTYPES = ("float64", "float32")
"""In which a step runs, if no others are asked for: coarser ones would hide a wrong factor."""


class Shipped(NamedTuple):
    """A certified loss."""

    contract: str
    name: str
    """In `verified_losses`."""
    options: tuple[tuple[str, Any], ...] = ()
    """Those that it has pinned."""


LOSSES = {
    "clip": Shipped("clip", "ClipLoss"),
    "coca": Shipped("coca", "CoCaLoss"),
    "coca_hidden": Shipped("coca_hidden", "CoCaLoss"),
    "distill": Shipped("distill", "DistillClipLoss"),
    "siglip": Shipped("siglip", "SigLipLoss"),
    "gather": Shipped("gather", "gather_features"),
    "linear_cross_entropy": Shipped("linear_cross_entropy", "fused_linear_cross_entropy"),
    "exchange": Shipped("exchange", "neighbour_exchange_with_grad"),
    "exchange_bidir": Shipped(
        "exchange", "neighbour_exchange_bidir_with_grad", options=(("bidirectional", True),)
    ),
}
"""The certified losses, by label."""
ROWS_OF = ("clip", "siglip", "coca", "coca_hidden", "distill", "infonce", "ntxent")
"""The contracts whose losses may normalise rows."""


def meant(text: str, names: Iterable[str]) -> str:
    """Return the question to ask of a name or a pattern that is none of these; nothing where none is near."""
    text = text.strip("*")
    # the first of the names that have a part
    parts = {part: name for name in [*names][::-1] for part in (name[: len(text)], *name.split(), name)}
    near = difflib.get_close_matches(text, parts, 1)
    return f": did you mean {parts[near[0]]}?" if near else ""
