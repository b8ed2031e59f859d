"""The names of contracts, options, dtypes and layouts.

Imports nothing: arguments are checked against these names before torch is imported, which takes seconds.
"""

from typing import Any, Literal, get_args

Convention = Literal["exact", "open_clip"]
"""Whose gradients a loss has: those of one process, or upstream's."""
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
DTYPES = ("float64", "float32", "bfloat16", "float16")
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
CONTRACTS: dict[str, Values] = {
    "clip": GATHERS,
    "coca": GATHERS | {"clip_loss_weight": float, "caption_loss_weight": float, "pad_id": int},
    "distill": GATHERS,
    "siglip": {"dist_impl": (*DIST_IMPLS, None), "cache_labels": FLAGS, "use_horovod": FLAGS},
    "gather": GATHERS,
    "exchange": {"bidirectional": FLAGS},
    "infonce": GATHERS,
    "ntxent": GATHERS,
    "cross_entropy": {"ignore_index": int},
}
"""The contracts, and the values that the options of each may have."""
