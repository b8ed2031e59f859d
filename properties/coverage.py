"""Which regions of what can be drawn a case lies in, and how often a run really meets each."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from .cases import Case, captions, feature_pair

TILE = 64
"""Rows that a tile or chunk in common use holds."""
SATURATED = 17.0
"""Beyond this, exp(-logit) is lost beside 1 in float32."""
FLAGS = ("local_loss", "gather_with_grad", "convention", "dist_impl", "bidirectional")


def regions(case: Case) -> frozenset[str]:
    """Return the names of all regions that a case lies in."""
    given = {
        f"world of {case.world_size}": True,
        f"dtype {case.dtype}": True,
        f"width of remainder {case.width % 8} by 8": True,
        "one row in all": sum(case.rows) == 1,
        "one row on a rank": 1 in case.rows,
        "rows that differ between ranks": len(set(case.rows)) > 1,
        f"more than {TILE} rows in all": sum(case.rows) > TILE,
        f"more than {TILE} rows on a rank": max(case.rows) > TILE,
        f"more than {2 * TILE} columns": case.width > 2 * TILE,
        f"{case.strides} inputs": True,
        "drawn cotangents": case.cotangents == "drawn",
        f"{case.cotangent_strides} cotangents": True,
        "scale above 50": case.scale > 50,
        "scale 0": case.scale == 0,
        "no bias": case.bias is None,
        "scalars of shape [1]": case.scalar_shape == (1,),
        "wide scalars": case.wide_scalars,
        "a dict": case.output_dict,
        "saturated logits": _largest_logit(case) > SATURATED,
        "features of few bits": case.pattern == "grid",
        "duplicate rows": case.pattern == "duplicates" and sum(case.rows) > 1,
    }
    named = {name for name, inside in given.items() if inside}
    named |= {f"frozen {name}" for name in case.frozen}
    flags = [f"{name}={value}" for name, value in case.options if name in FLAGS]
    if flags:
        named.add(", ".join(flags))
    return frozenset(named | _padding(case))


def table(cases: Iterable[Case]) -> dict[str, int]:
    """Return how many of the cases lie in each region, the rarest first."""
    counts = Counter(name for case in cases for name in regions(case))
    return dict(sorted(counts.items(), key=lambda item: (item[1], item[0])))


def _largest_logit(case: Case) -> float:
    image, text = feature_pair(case, case.width, 1)
    return float(np.max(abs(case.scale * image @ text.T + (case.bias or 0))))


def _padding(case: Case) -> set[str]:
    if case.pads == "none" and not case.pad_rows:
        return set()
    is_pad = captions(case)[1] == case.pad_id
    given = {
        "padding alone": is_pad.all(),
        "padding but for one token": np.count_nonzero(~is_pad) == 1,
        "one rank of padding": any(part.all() for part in case.split(is_pad)) and not is_pad.all(),
        "padding inside a caption": (is_pad[:, :-1] & ~is_pad[:, 1:]).any(),
        "pad id other than 0": case.pad_id != 0,
    }
    return {name for name, inside in given.items() if inside}
