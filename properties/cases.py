"""Strategies that draw a whole case, the input of a world of ranks, from a few plain numbers and a seed.

Hypothesis draws the shape of a case and a seed; NumPy fills the arrays. Every choice is listed simplest
first, and the seed comes last, so that a failing case shrinks to one a person can read.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from hypothesis import strategies as st

from verified_losses.oracles import dtypes
from verified_losses.oracles.bounds import Precision
from verified_losses.oracles.complex_step import Array
from verified_losses.oracles.held import OF_SCALE

from . import devices
from .names import DTYPES, HALVES, STRIDES, Features, Held
from .standalone.acts import to_array

T = TypeVar("T")
Options = tuple[tuple[str, Any], ...]
"""Keyword arguments of a constructor, as pairs."""
Spoiled = tuple[int, str, int, str]
"""An element of an input that nobody should send: its rank, name and place, and the number that is there."""

# twice: in these alone an error of few units in the last place shows
PATTERNS = ("basis", "grid", "grid", "unit", "duplicates", "zeros", "saturated", "opposite", "large")
PAD_IDS = (0, 1, -100, 1000)
PADS = ("none", "tail", "inside", "all but one", "all")
LARGEST_LOGIT = 1e4
"""Less where products of logits and features would overflow, as in the gradient of a scale in float16."""
MOVE = 2.0**-6
"""By how much rows lie beside those of a pattern: more than a rounding in half precision."""


@dataclass(frozen=True)
class Case:
    """One drawn input of one contract; the arrays follow from it. The defaults are the simplest case."""

    rows: tuple[int, ...] = (1,)
    """Rows of each rank."""
    width: int = 1
    dtype: str = "float64"
    pattern: str = "basis"
    scale: float = 1.0
    bias: float | None = None
    scalar_shape: tuple[int, ...] = ()
    wide_scalars: bool = False
    """Scale and bias in float32 beside half-precision features."""
    options: Options = ()
    frozen: tuple[str, ...] = ()
    """Inputs that do not require grad."""
    strides: str = "contiguous"
    cotangents: str = "ones"
    """"ones", or "drawn": different on every rank, term and element."""
    cotangent_strides: str = "contiguous"
    output_dict: bool = True
    vocabulary: int = 2
    length: int = 1
    pad_id: int = 0
    pads: str = "none"
    pad_rows: int = 0
    """The first rows of the global batch are padding alone."""
    teacher_width: int = 1
    seed: int = 0
    pad_content: int = 0
    """A seed that fills the logits, or the hidden states, at padding; 0 leaves them."""
    device: str = devices.CPU
    """Where the tensors are, or those devices that ranks have in turn: "cuda:0/cuda:1"."""
    cpu_scalars: bool = False
    """Scale and bias of no dimensions on the CPU beside features on another device."""
    matmul: str = devices.EXACT
    """How its device multiplies matrices: one of `oracles.dtypes.MATMULS`, as `devices.matmul_of` tells."""
    features: Features = ""
    """What is done with rows of features."""
    held: Held = ()
    """The inputs whose tensors hold another form of them."""
    drawn: Options = ()
    """What else was drawn for a formula: numbers and sizes, by name."""
    spoiled: tuple[Spoiled, ...] = ()
    """Elements that are not what was drawn, but what nobody should send."""
    frozen_on: tuple[int, ...] = ()
    """The ranks on which the `frozen` inputs require no grad; on all, if there are none."""
    widened: tuple[str, ...] = ()
    """Inputs whose tensors are of float32, and whose values are of `dtype`, as autocast makes them."""
    beside: int = 0
    """Which way rows of features are moved a little, away from zeros, from one another and right angles."""

    def __str__(self) -> str:
        """List the fields that differ from the simplest case, and the shape."""
        always = ("rows", "width", "dtype", "pattern", "scale", "seed")
        shown = [f for f in fields(self) if f.name in always or getattr(self, f.name) != f.default]
        return f"Case({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return len(self.rows)

    @property
    def summed(self) -> int:
        """The most losses that a mean adds up first: of all rows, or tokens, in two directions or views."""
        return 2 * sum(self.rows) * self.length

    def option(self, name: str, default: Any = False) -> Any:
        """Return one of `options`."""
        return dict(self.options).get(name, default)

    @property
    def convention(self) -> str:
        """Whose gradients a loss is to have; "exact", those of one process, where nothing was drawn."""
        value: str = self.option("convention", "exact")
        return value

    def device_of(self, rank: int) -> str:
        """Return where a rank's tensors are."""
        return devices.of_rank(self.device, rank)

    def scalar_device(self, rank: int) -> str:
        """Return where a rank's scale and bias are."""
        return devices.CPU if self.cpu_scalars else self.device_of(rank)

    @property
    def precision(self) -> Precision:
        """The arithmetic that its bounds are of."""
        return Precision.of(self.dtype, self.matmul)

    def split(self, array: Array) -> list[Array]:
        """Split a global batch over the ranks."""
        return np.split(array, np.cumsum(self.rows)[:-1])

    @property
    def scalar_dtype(self) -> str:
        """The dtype of scale and bias."""
        return "float32" if self.wide_scalars else self.dtype

    def dtype_of(self, name: str, is_scalar: bool) -> str:
        """Return the dtype of an input's tensor."""
        if name in self.widened:
            return "float32"
        return self.scalar_dtype if is_scalar else self.dtype

    def is_frozen(self, name: str, rank: int) -> bool:
        """Whether an input requires no grad on a rank."""
        return name in self.frozen and (not self.frozen_on or rank in self.frozen_on)


def rounded(array: Array, dtype: str) -> Array:
    """Round to the nearest values of `dtype`, kept as float64, so that oracle and subject get the same."""
    return to_array(torch.as_tensor(array, dtype=torch.float64).to(getattr(torch, dtype)))


def spoil(case: Case, inputs: list[dict[str, Array]]) -> list[dict[str, Array]]:
    """Return every rank's inputs with the case's spoiled elements in them."""
    ready = [dict(given) for given in inputs]
    for rank, name, place, number in case.spoiled:
        array = ready[rank][name].copy()
        array.reshape(-1)[place % array.size] = int(number) if array.dtype.kind == "i" else float(number)
        ready[rank][name] = array
    return ready


def moved(case: Case, way: int = 1) -> Case:
    """Return a case whose rows lie beside these, at another scale: rows of width 1 may have no others.

    A scale of 1 is kept, which a loss that takes none has, and so is every bias: a loss may forget that of 0.
    """
    scale = case.scale if case.scale == 1.0 else few_bits(case.scale * 15 / 16)
    return replace(case, beside=way, scale=scale)


def few_bits(number: float) -> float:
    """Round to seven significant bits, which every dtype holds."""
    mantissa, exponent = math.frexp(number)
    return math.ldexp(round(mantissa * 128), exponent - 7)


def feature_pair(case: Case, width: int, seed: int) -> tuple[Array, Array]:
    """Fill the image and text features of all ranks, [sum of rows, width] each."""
    generator = np.random.default_rng([case.seed, seed])
    shape = (sum(case.rows), width)
    first, second = generator.standard_normal(shape), generator.standard_normal(shape)
    if case.pattern == "basis":
        # from both ends inwards: few rows reach the last columns too, in every width
        inwards = np.stack([np.arange(width)[::-1], np.arange(width)], axis=1).reshape(-1)[:width]
        own = np.arange(shape[0]) % width
        first = np.eye(width)[inwards[own]]
        second = np.eye(width)[inwards[generator.permutation(own)]]
    for array in (first, second):
        array /= np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-30)
    if case.pattern == "grid":
        # of few bits: products and sums are exact
        first, second = generator.integers(-3, 4, (2, *shape)) / 4
    elif case.pattern == "duplicates":
        first, second = first[np.arange(shape[0]) // 2], second[np.arange(shape[0]) // 2]
    elif case.pattern == "zeros":
        first[::2] = 0
        second[1::3] = 0
    elif case.pattern == "saturated":
        second = first.copy()
    elif case.pattern == "opposite":
        second = -first
    elif case.pattern == "large":
        first, second = 30 * first, 20 * second
    if case.beside:
        moves = np.random.default_rng([case.seed, seed, case.beside]).standard_normal((2, *shape))
        first, second = first + MOVE * moves[0], second + MOVE * moves[1]
    # a gradient by a temperature divides logits by it once more
    further = max(case.scale, 1.0) if ("logit_scale", "inverse") in case.held else 1.0
    limit = min(LARGEST_LOGIT, 2.0 ** (dtypes.DTYPES[case.dtype].huge - 6) / further)
    largest = np.sqrt(abs(case.scale) * np.max(abs(first @ second.T), initial=0) / limit)
    first, second = first / max(largest, 1), second / max(largest, 1)
    return rounded(first, case.dtype), rounded(second, case.dtype)


def captions(case: Case) -> tuple[Array, Array]:
    """Fill caption logits [sum of rows, length, vocabulary] and labels [sum of rows, length]."""
    generator = np.random.default_rng([case.seed, 3])
    shape = (sum(case.rows), case.length)
    spread = {"large": 30.0, "saturated": 10.0, "zeros": 0.0}.get(case.pattern, 1.0)
    logits = spread * generator.standard_normal((*shape, case.vocabulary))
    if case.pattern == "grid":
        logits = generator.integers(-60, 61, logits.shape) / 4
    ids = [token for token in range(case.vocabulary) if token != case.pad_id]
    labels = generator.choice(ids, shape)
    is_pad = np.zeros(shape, dtype=bool)
    if case.pads == "tail":
        is_pad = np.arange(case.length) >= generator.integers(0, case.length + 1, (shape[0], 1))
    elif case.pads == "inside":
        is_pad = generator.random(shape) < 0.5
    elif case.pads in ("all but one", "all"):
        is_pad[:] = True
        is_pad[-1, 0] = case.pads == "all"
    is_pad[: case.pad_rows] = True
    labels = np.where(is_pad, case.pad_id, labels)
    if case.pad_content:
        other = np.random.default_rng(case.pad_content).standard_normal(logits.shape)
        logits = np.where(is_pad[..., None], 100 * other, logits)
    return rounded(logits, case.dtype), labels


def projection(case: Case, tokens: int) -> tuple[Array, Array, Array]:
    """Fill [tokens, width] hidden states, the [vocabulary, width] weight and the [vocabulary] bias."""
    generator = np.random.default_rng([case.seed, 5])
    spread = {"large": 100.0, "saturated": 10.0, "zeros": 0.0}.get(case.pattern, 1.0)
    shapes = (tokens, case.width), (case.vocabulary, case.width), (case.vocabulary,)
    hidden, weight, bias = (generator.standard_normal(shape) for shape in shapes)
    if case.pattern in ("grid", "basis"):
        # of few bits: products and sums are exact
        hidden, weight, bias = (generator.integers(-6, 7, shape) / 4 for shape in shapes)
    weight *= spread / np.sqrt(case.width)
    return tuple(rounded(each, case.dtype) for each in (hidden, weight, bias))  # type: ignore[return-value]


def hidden_captions(case: Case) -> tuple[Array, Array, Array, Array]:
    """Fill hidden states [sum of rows, length, width], the vocabulary's weight and bias, and the labels."""
    labels = captions(case)[1]
    hidden, weight, bias = projection(case, labels.size)
    hidden = hidden.reshape(*labels.shape, case.width)
    if case.pad_content:
        # of logits that half precision holds: those at padding may be computed
        other = rounded(np.random.default_rng(case.pad_content).normal(0, 10, hidden.shape), case.dtype)
        hidden = np.where((labels == case.pad_id)[..., None], other, hidden)
    return hidden, weight, bias, labels


def without_zeros(views: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return features without rows of zeros, whose length cannot be made 1."""
    first, second = (view.copy() for view in views)
    for view in (first, second):
        view[~view.any(axis=1), 0] = 1
    return first, second


def scalars(case: Case, prefix: str = "") -> dict[str, Array]:
    """Return the logit scale and, where there is one, the bias, under names with a prefix.

    Where something else is held for one of them, it is returned for the value that was drawn.
    """
    values = {"logit_scale": case.scale} | ({} if case.bias is None else {"logit_bias": case.bias})
    values = {f"{prefix}{name}": value for name, value in values.items()}
    values |= {name: OF_SCALE[kind](values[name]) for name, kind in case.held if name in values}
    return {name: rounded(np.full(case.scalar_shape, v), case.scalar_dtype) for name, v in values.items()}


ALONE = 4
"""In one of so many cases, by their seeds, one term is derived alone."""


def cotangents(case: Case, shapes: list[dict[str, tuple[int, ...]]]) -> list[dict[str, Array]]:
    """Return the cotangents of every rank's terms, given their shapes; zeros are those of a term left out."""
    generator = np.random.default_rng([case.seed, 4])
    # halves are exact in every dtype; with all the digits of the case's, a narrower one shows
    halves = generator.random() < 0.5
    drawn: list[dict[str, Array]] = []
    for rank_shapes in shapes:
        values = {}
        for name, shape in rank_shapes.items():
            digits = generator.standard_normal(shape)
            value = generator.integers(-4, 5, shape) / 2 if halves else rounded(digits, case.dtype)
            if case.cotangent_strides == "expanded" and len(shape) == 2:
                value = np.broadcast_to(value[:, :1], shape)
            is_kept = case.cotangents != "ones" and np.any(value)
            values[name] = np.asarray(value if is_kept else np.ones(shape))
        if case.cotangents == "alone":
            alone = [*values][case.seed // ALONE % len(values)]
            values = {name: one if name == alone else 0 * one for name, one in values.items()}
        drawn.append(values)
    return drawn


def transposed(value: torch.Tensor) -> torch.Tensor:
    """Return the same values, the first dimension's next to one another."""
    return value.transpose(0, -1).contiguous().transpose(0, -1)


def sliced(value: torch.Tensor) -> torch.Tensor:
    """Return the same values, every other element of a larger tensor."""
    return torch.stack([value, torch.full_like(value, 7)], dim=-1)[..., 0]


def narrowed(value: torch.Tensor) -> torch.Tensor:
    """Return the same values, the first columns of a wider tensor."""
    return torch.nn.functional.pad(value, (0, 1), value=7)[..., :-1]


def shortened(value: torch.Tensor) -> torch.Tensor:
    """Return the same values, the first dimension's next to one another, the first of a longer one."""
    return torch.nn.functional.pad(value.transpose(0, -1), (0, 1), value=7)[..., :-1].transpose(0, -1)


def expanded(value: torch.Tensor) -> torch.Tensor:
    """Return the same values, every column one memory."""
    return value[:, :1].expand(value.shape)


LAYOUTS = {layout.__name__: layout for layout in (transposed, sliced, narrowed, shortened, expanded)}
"""How a tensor that is not contiguous is laid out; a counterexample quotes it."""


def has_layout(strides: str, ndim: int) -> bool:
    """Whether a tensor of so many dimensions is laid out otherwise than contiguously."""
    return strides in LAYOUTS and {"sliced": ndim > 0, "expanded": ndim == 2}.get(strides, ndim > 1)


def tensor(array: Array, dtype: str, strides: str, requires_grad: bool, device: str = "cpu") -> torch.Tensor:
    """Return a leaf tensor of the given values, memory layout and device."""
    made = torch.tensor(array, dtype=getattr(torch, dtype), device=device)
    if has_layout(strides, made.ndim):
        made = LAYOUTS[strides](made)
    return made.requires_grad_(requires_grad)


TILES = ((1, 0), (16, 0), (64, 0), (64, 1))
"""A size is a multiple of the first, as tiles and chunks in common use are, and the second more than that."""


@st.composite
def sizes(draw: st.DrawFn, limits: tuple[int, ...]) -> int:
    """A number of rows or columns up to about one of `limits`, often a number of full tiles, or one more.

    One integer, rounded down to full tiles: where all larger sizes fail too it need not be rounded, and
    shrinks one by one to the smallest that fails.
    """
    limit = draw(st.sampled_from(limits))
    size = draw(st.integers(1, limit))
    tile, more = draw(st.sampled_from(TILES))
    full = size // tile * tile
    return full + more if full else size


def share_out(rows: int, world_size: int, even: bool) -> tuple[int, ...]:
    """Share rows out among ranks, at least one each; `even` rounds up to equally many.

    The total is drawn, not the rows of each rank: as Hypothesis removes ranks, the total does not change.
    """
    if even:
        return (math.ceil(rows / world_size),) * world_size
    each, over = divmod(max(rows, world_size), world_size)
    return tuple(each + (rank < over) for rank in range(world_size))


@st.composite
def shapes(draw: st.DrawFn, world_size: int, even: bool) -> dict[str, Any]:
    """Rows of each rank and width: mostly small, now and then one of the two passes a tile or a block.

    Tiles and blocks of kernels are of 64, 128, 256, 512 or 1,024.
    """
    kind = draw(st.sampled_from(["small", "uneven", "rows", "width"]))
    if kind == "width":
        return {"rows": (draw(st.integers(1, 4)),) * world_size, "width": draw(sizes((40, 257, 257, 1040)))}
    width = draw(sizes((9, 9, 40)))
    if kind == "uneven" and not even and world_size > 1:
        return {"rows": tuple(draw(st.integers(1, 8)) for _ in range(world_size)), "width": width}
    if kind != "rows" and world_size > 1:
        # in worlds of up to 8 no more than a tile of 64 together, which "rows" is for
        total = draw(st.integers(1, 60))
        return {"rows": share_out(total, world_size, even or draw(st.booleans())), "width": width}
    if world_size == 1:
        return {"rows": (draw(sizes((9, 9, 40, 257))),), "width": min(width, 24)}
    if even or not draw(st.booleans()):
        return {"rows": share_out(draw(sizes((160, 528))), world_size, even), "width": width}
    longest = draw(sizes((40, 129, 129)))
    rows = [draw(st.integers(1, 8)) for _ in range(world_size)]
    rows[draw(st.sampled_from([0, -1]))] = longest
    return {"rows": tuple(rows), "width": min(width, 24)}


@st.composite
def without_rows(draw: st.DrawFn, rows: tuple[int, ...]) -> tuple[int, ...]:
    """Rows of each rank, of which some ranks, not all, hold none."""
    ranks = st.integers(0, len(rows) - 1)
    empty = draw(st.sets(ranks, min_size=1, max_size=len(rows) - 1))
    return tuple(0 if rank in empty else count for rank, count in enumerate(rows))


def independent(strategy: st.SearchStrategy[T]) -> st.SearchStrategy[T]:
    """Return the strategy without Hypothesis's mutations: every example is drawn from scratch.

    Hypothesis mutates each example up to six times by copying a part of it to another place. For our cases 80
    of 100 would be near duplicates. It does not mutate the elements of a list that must be unique, so each
    example is drawn as the only element of such a list.
    """
    return st.lists(strategy, min_size=1, max_size=1, unique_by=id).map(lambda drawn: drawn[0])


# CLIP starts at 1 / 0.07 and stops at 100, SigLIP starts at 10; others stop elsewhere, or have none
USUAL_SCALES = st.sampled_from([1.0, 10.0, 14.25, 25.0, 100.0, 150.0, 0.0])
SCALES = USUAL_SCALES | st.floats(-5, 5).map(lambda x: float(f"{math.exp(x):.3g}"))
POSITIVE_SCALES = st.sampled_from([1.0, 10.0, 14.25, 25.0, 100.0, 150.0]) | st.floats(-5, 5).map(
    lambda x: float(f"{math.exp(x):.3g}")
)
# losses that hold its logarithm, or a temperature, stop it at 100
HELD_SCALES = st.sampled_from([1.0, 10.0, 14.25, 25.0, 50.0, 99.0]) | st.floats(0, 4.5).map(
    lambda x: float(f"{math.exp(x):.3g}")
)
# those of a temperature, which losses as ALBEF's and BLIP's stop at 0.5 too
TEMPERED_SCALES = HELD_SCALES.map(lambda scale: max(scale, 2.5))
BIASES = st.sampled_from([None, 0.0, -10.0]) | st.floats(-16, 16).map(lambda x: float(f"{x:.3g}"))
BOOLEANS = st.booleans()


def unsigned_zero(bias: float | None) -> float | None:
    """Return a bias that is not -0.0."""
    return None if bias is None else bias + 0.0


def held_bias(bias: float | None) -> float | None:
    """Return a bias whose logarithm and inverse are no larger than those that losses hold."""
    return None if bias is None else max(abs(bias), 0.5)


SEEDS = st.integers(0, 2**16)


@st.composite
def cases(
    draw: st.DrawFn,
    world_size: int,
    options: st.SearchStrategy[Options],
    even: bool = False,
    dtypes: tuple[str, ...] = DTYPES,
    freezable: tuple[str, ...] = (),
    strides: tuple[str, ...] = STRIDES,
    cotangent_strides: tuple[str, ...] = ("contiguous",),
    scales: st.SearchStrategy[float] = SCALES,
    biases: st.SearchStrategy[float | None] = BIASES,
    output_dicts: st.SearchStrategy[bool] = BOOLEANS,
    captions: bool = False,
    pad_ids: tuple[int, ...] = PAD_IDS,
    teacher: bool = False,
    empty_ranks: bool = False,
) -> Case:
    """Draw a case of a world of `world_size` ranks.

    Args:
        draw: given by Hypothesis.
        world_size: number of ranks.
        options: arguments of the subject's constructor.
        even: give every rank equally many rows.
        dtypes: which dtypes to choose from.
        freezable: inputs that may not require grad.
        strides: memory layouts of the inputs.
        cotangent_strides: memory layouts of the cotangents.
        scales: logit scales.
        biases: logit biases.
        output_dicts: whether to ask for a dict.
        captions: draw a vocabulary, a caption length and padding.
        pad_ids: labels that mark padding.
        teacher: draw a width for a teacher.
        empty_ranks: now and then some ranks hold no rows.
    """
    chosen: dict[str, Any] = {"options": draw(options), **draw(shapes(world_size, even))}
    if empty_ranks and world_size > 1 and not even and draw(st.integers(0, 7)) == 7:
        chosen["rows"] = draw(without_rows(chosen["rows"]))
    chosen["dtype"] = draw(st.sampled_from(dtypes))
    chosen["pattern"] = draw(st.sampled_from(PATTERNS))
    chosen["scale"] = draw(scales)
    chosen["bias"] = draw(biases)
    if chosen["pattern"] == "grid":
        chosen["scale"] = few_bits(chosen["scale"])
        chosen["bias"] = chosen["bias"] and few_bits(chosen["bias"])
        # a long sum rounds, even of such numbers
        chosen["rows"] = tuple(min(rows, 2) for rows in chosen["rows"])
    chosen["scalar_shape"] = draw(st.sampled_from([(), (1,)]))
    half = chosen["dtype"] in HALVES
    # of shape [1] it would make torch promote the features
    chosen["wide_scalars"] = half and chosen["scalar_shape"] == () and draw(st.booleans())
    freeze: bool = draw(st.booleans())
    if freezable and freeze:
        one = st.sampled_from(freezable)
        some = st.sets(one, max_size=len(freezable) - 1) | one.map(lambda kept: {*freezable} - {kept})
        chosen["frozen"] = tuple(sorted(draw(some)))
    chosen["strides"] = draw(st.sampled_from(strides))
    chosen["cotangents"] = draw(st.sampled_from(["ones", "drawn"]))
    chosen["cotangent_strides"] = draw(st.sampled_from(cotangent_strides))
    if captions:
        big = sum(chosen["rows"]) > 64
        chosen["vocabulary"] = draw(st.integers(2, 9 if big else 40))
        chosen["length"] = draw(st.integers(1, 3 if big else 9))
        chosen["pad_id"] = draw(st.sampled_from(pad_ids))
        chosen["pads"] = draw(st.sampled_from(PADS))
        one_rank_is_all_padding: bool = draw(st.booleans())
        chosen["pad_rows"] = chosen["rows"][0] if one_rank_is_all_padding else 0
    if teacher:
        chosen["teacher_width"] = draw(st.integers(1, 24))
    chosen["output_dict"] = draw(output_dicts)
    chosen["seed"] = draw(SEEDS)
    return Case(**chosen)
