"""Stated memory: what the functions return is what the table in their module's docstring says."""

import itertools
import re

import pytest
import torch

from tests.test_losses import CLASSES, batch, make
from verified_losses import SigLipLoss, captions, memory, tiles
from verified_losses.properties.standalone.acts import Call, exceed_memory
from verified_losses.properties.worlds.processes import shared_world
from verified_losses.properties.worlds.simulated import SimulatedWorld

NAMES = {"CLIP": "clip", "SigLIP": "siglip", "distillation": "distill"}
SIZES = [(n, d) for n in (0, 1, 3, 7) for d in (1, 4)]
KINDS = ("clip", "siglip", "distill")


ALONE, GATHERED = memory.__doc__.split("Over several ranks")


def table(text):
    """Yield form, of what, and the formulas of saved and peak, for each line of the tables in a text."""
    form = what = ""
    for line in text.splitlines():
        cells = re.split(" {2,}", re.sub("saved: |peak: ", "  ", line).strip())
        formulas = [cell for cell in cells if cell.startswith("w (") or cell == "0"]
        for word in cells:
            form = word if word in ("dense", "streamed") else form
            what = NAMES.get(word, word) if word in (*NAMES, "logits", "hidden") else what
        if formulas:
            yield form, what, *formulas


def number(formula, **values):
    """Return the value of a formula, in which what stands side by side is multiplied."""
    python = formula.replace("^", "**")
    python = re.sub(r"(?<=[\w)]) (?=[\w(])", "*", python)
    return eval(python, {}, values)


LINES = {(form, what): (saved, peak) for form, what, saved, peak in table(ALONE)}
OF_RANKS = {(form, what): (saved, peak) for form, what, saved, peak in table(GATHERED)}


def test_the_table_is_read():
    assert sorted(OF_RANKS) == sorted(itertools.product(("dense", "streamed"), KINDS))
    assert sorted(LINES) == sorted(itertools.product(("dense", "streamed"), (*KINDS, "logits", "hidden")))


@pytest.mark.parametrize(("dtype", "w"), [(torch.float64, 8), (torch.float32, 4), (torch.bfloat16, 4)])
@pytest.mark.parametrize(("form", "what"), LINES)
def test_functions_return_what_the_table_says(form, what, dtype, w):
    for (n, d), size, k in itertools.product(SIZES, (1, 2, 5), (1, 2, 9)):
        tile = (size, size + 1)
        e, v, h = (d + 1 if what == "distill" else 0), d, size + 2
        if what == "logits":
            found = memory.of_logits(form == "streamed", n, v, k, dtype)
        elif what == "hidden":
            found = memory.of_hidden(form == "streamed", n, v, h, k, dtype)
        else:
            found = memory.of_pairs(form, what, n, d, dtype, tile, e)
        values = {
            "n": n, "d": d, "e": e, "w": w, "v": v, "h": h, "t": n, "k": min(k, n),
            "r": min(tile[0], n), "c": min(tile[1], n),
        }  # fmt: skip
        assert found == tuple(number(formula, **values) + memory.SMALL for formula in LINES[form, what])


@pytest.mark.parametrize(("dtype", "w"), [(torch.float64, 8), (torch.bfloat16, 4)])
@pytest.mark.parametrize(("form", "what"), OF_RANKS)
def test_functions_return_what_the_table_of_ranks_says(form, what, dtype, w):
    flags = itertools.product((False, True), repeat=2)
    for (local, with_grad), rows, rank in itertools.product(flags, [(3, 3), (0, 5, 2)], (0, 1)):
        d, e, (n, total) = 2, 3 if what == "distill" else 0, (rows[rank], sum(rows))
        share = memory.Share(rows, rank, local or what == "siglip", with_grad or what == "siglip")
        found = memory.of_gathered(form, what, share, d, dtype, (2, 4), e)
        values = {
            "n": n, "N": total, "m": len(rows) * max(rows), "d": d, "e": e, "w": w,
            "a": n if local else total, "g": 1 if with_grad else 2, "r": 2, "c": 4,
        }  # fmt: skip
        assert found == tuple(number(formula, **values) + memory.SMALL for formula in OF_RANKS[form, what])


def exceeding(rank, size, kind, rows, options):
    """Return by how much a rank's call exceeds what is stated, in words."""
    terms = ["contrastive_loss", "distill_loss" if kind == "distill" else "caption_loss"]
    one = Call(
        lambda: make(kind, rank, size, **options),
        lambda loss, given: loss(**given),
        lambda: batch(kind, rank, rows[rank]),
        lambda name, term: torch.ones_like(term),
        terms if kind in ("coca", "distill") else terms[:1],
        rank,
        "train",
    )
    return exceed_memory([one])


class OfTokens:
    """What the captions of hidden states cost, and what is stated of it."""

    def __call__(self, hidden, weight, bias, labels):
        return captions.sum_linear(hidden, weight, bias, labels, captions.TokenLoss(0), 16)

    def stated_memory(self, hidden, weight, bias, labels):
        return memory.of_hidden(True, len(hidden), *weight.shape, 16, hidden.dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "width"), [(4000, 1), (4000, 64), (40, 64)])
def test_hidden_states_take_no_more_than_stated(tokens, width, dtype):
    def given():
        features = (torch.ones(count, width, dtype=dtype).requires_grad_() for count in (tokens, 3))
        bias, labels = torch.zeros(3, dtype=dtype).requires_grad_(), torch.ones(tokens, dtype=torch.int64)
        return dict(zip(("hidden", "weight", "bias", "labels"), (*features, bias, labels), strict=True))

    def cotangent(name, term):
        return torch.ones_like(term)

    one = Call(OfTokens, lambda loss, of: loss(**of), given, cotangent, ["caption_loss"], 0, "train")
    assert exceed_memory([one]) == []


RANKED = [
    *(
        (kind, {"local_loss": local, "gather_with_grad": grad})
        for kind in ("clip", "distill")
        for local, grad in ((True, True), (False, False), (True, False))
    ),
    ("coca", {"gather_with_grad": True}),
    *(("siglip", {"dist_impl": impl}) for impl in ("bidir", "gather")),
]


@pytest.mark.parametrize(("kind", "options"), RANKED)
@pytest.mark.parametrize("form", ["dense", "streamed"])
def test_ranks_take_no_more_than_they_state(form, kind, options, monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)  # which takes most of the time
    given = options | {"implementation": form, "tile_size": 32}
    assert SimulatedWorld(4).run(exceeding, kind, (90, 0, 2, 40), given) == [[]] * 4


@pytest.mark.processes
@pytest.mark.parametrize("form", ["dense", "streamed"])
@pytest.mark.parametrize("kind", KINDS)
def test_processes_take_no_more_than_they_state(kind, form):
    given = {"implementation": form, "tile_size": 32}
    assert shared_world(2).run(exceeding, kind, (90, 30), given) == [[], []]


def test_ranks_that_are_told_no_rows_state_equal_ones():
    inputs = batch("clip")
    loss = make("clip", 1, 3, local_loss=True)
    assert loss.stated_memory(**inputs) == loss.stated_memory(rows=(2, 2, 2), **inputs)
    assert loss.stated_memory(**inputs) != make("clip").stated_memory(**inputs)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (999_900, "1e+03 kB"),
        (1_000_000, "1 MB"),
        (870_400_000, "870 MB"),
        (1e9, "1 GB"),
        (2e12, "2e+03 GB"),
    ],
)
def test_bytes_in_words(count, words):
    assert memory.size(count) == words


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_loss_states_the_memory_of_the_form_that_it_takes(kind, dtype, monkeypatch):
    given = batch(kind, rows=5)
    inputs = {name: value.to(dtype) if torch.is_tensor(value) else value for name, value in given.items()}
    n, d = inputs["image_features"].shape
    e = inputs["dist_image_features"].shape[1] if kind == "distill" else 0
    for form in ("dense", "streamed"):
        for size in (None, 2):
            tile = (size, size) if size else tiles.TILE
            stated = memory.of_pairs(form, kind, n, d, dtype, tile, e)
            assert make(kind, implementation=form, tile_size=size).stated_memory(**inputs) == stated
    for method in ("get_logits", "get_ground_truth", *(["dist_loss"] if kind == "distill" else [])):
        own = type("Own", (CLASSES[kind],), {method: lambda *_: None})
        found = own(implementation="streamed").stated_memory(**inputs)
        assert found == memory.of_pairs("dense", kind, n, d, dtype, tiles.TILE, e)
        found = own(rank=1, world_size=2).stated_memory(rows=(2, n), **inputs)
        share = memory.Share((2, n), 1, kind == "siglip", kind == "siglip")
        assert found == memory.of_gathered("dense", kind, share, d, dtype, tiles.TILE, e)
    monkeypatch.setattr("verified_losses.implementations.STREAMED_FROM", n)
    assert make(kind).stated_memory(**inputs) == memory.of_pairs("streamed", kind, n, d, dtype, tiles.TILE, e)
    halves = {name: value.half() if torch.is_tensor(value) else value for name, value in inputs.items()}
    assert make(kind).stated_memory(**halves) == memory.of_pairs(
        "dense", kind, n, d, torch.float16, tiles.TILE, e
    )


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_statistics_hold_what_is_added_up_and_no_more(taught, weighted):
    held = tiles.Statistics(7, 1, torch.zeros(()), taught, weighted)
    sizes = [len(one) for one in (held.moment, held.products, held.dist_products)]
    assert sizes == [7 * taught, 7 * weighted, 7 * (taught and weighted)]
    assert [len(one.sum) for one in (held.student, held.teacher)] == [7, 7 * taught]


@pytest.mark.parametrize("form", ["dense", "streamed"])
def test_there_is_no_teacher_unless_its_width_is_told(form):
    given = form, "distill", 50, 3, torch.float32, tiles.TILE
    assert memory.of_pairs(*given) == memory.of_pairs(*given, teacher=0)


def test_a_teacher_that_learns_takes_the_memory_of_the_dense_form():
    inputs = batch("distill")
    n, d = inputs["image_features"].shape
    dense, streamed_ = (
        memory.of_pairs(form, "distill", n, d, torch.float64, tiles.TILE, d) for form in ("dense", "streamed")
    )
    upstream = make("distill", implementation="streamed", convention="open_clip")
    assert upstream.stated_memory(**inputs) == dense
    assert make("distill", implementation="streamed").stated_memory(**inputs) == streamed_
    constant = {name: one.detach() if name.startswith("dist") else one for name, one in inputs.items()}
    constant["dist_logit_scale"] = 2.0
    assert upstream.stated_memory(**constant) == streamed_
    with torch.no_grad():
        assert upstream.stated_memory(**inputs) == streamed_


@pytest.mark.parametrize("form", ["dense", "streamed"])
@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("with_grad", [True, False])
def test_ranks_state_what_their_flags_take(form, local, with_grad):
    features, rows = torch.zeros(3, 2), (3, 4)
    loss = make("clip", 0, 2, implementation=form, local_loss=local, gather_with_grad=with_grad, tile_size=2)
    share = memory.Share(rows, 0, local, with_grad)
    stated = memory.of_gathered(form, "clip", share, 2, features.dtype, (2, 2))
    assert loss.stated_memory(image_features=features, rows=rows) == stated


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [None, 3])
def test_captions_state_the_memory_of_the_form_that_they_take(size, dtype, monkeypatch):
    n, length, words, width = 4, 3, 5, 2
    features = torch.zeros(n, 2, dtype=dtype)
    of_logits = {"logits": torch.zeros(n, length, words, dtype=dtype)}
    of_hidden = {
        "hidden_states": torch.zeros(n, length, width, dtype=dtype),
        "vocabulary_weight": torch.zeros(words, width, dtype=dtype),
    }
    monkeypatch.setattr(captions, "CHUNK", 7)

    def check(form, logits_are_streamed, most):
        loss, pairs = (make(kind, implementation=form, tile_size=size) for kind in ("coca", "clip"))
        contrastive = pairs.stated_memory(image_features=features)
        stated = memory.of_logits(logits_are_streamed, n * length, words, size or most, dtype)
        assert loss.stated_memory(image_features=features, **of_logits) == contrastive.plus(stated)
        stated = memory.of_hidden(form != "dense", n * length, words, width, size or 7, dtype)
        assert loss.stated_memory(image_features=features, **of_hidden) == contrastive.plus(stated)

    for elements, most in (2 * words + 1, 2), (words - 1, 1):
        monkeypatch.setattr(captions, "PASS", elements)
        for form in ("dense", "streamed"):
            check(form, form == "streamed", most)
    check("auto", False, 1)
    monkeypatch.setattr("verified_losses.implementations.ELEMENTS", n * length * words)
    check("auto", True, 1)


def test_a_caption_loss_of_ones_own_takes_the_memory_of_all_logits():
    n, length, words, width = 4, 3, 5, 2
    features, weight = torch.zeros(n, 2), torch.zeros(words, width)
    loss, pairs = (make(kind, implementation="streamed") for kind in ("coca", "clip"))
    loss.caption_loss = torch.nn.CrossEntropyLoss()
    contrastive = pairs.stated_memory(image_features=features)
    found = loss.stated_memory(image_features=features, logits=torch.zeros(n, length, words))
    stated = memory.of_logits(False, n * length, words, captions.CHUNK, torch.float32)
    assert found == contrastive.plus(stated)
    given = {"hidden_states": torch.zeros(n, length, width), "vocabulary_weight": weight}
    found = loss.stated_memory(image_features=features, **given)
    stated = memory.of_hidden(False, n * length, words, width, captions.CHUNK, torch.float32)
    assert found == contrastive.plus(stated)


@pytest.mark.parametrize("kind", KINDS)
def test_explanations_state_the_memory_of_the_form(kind):
    for form in ("dense", "streamed"):
        stated = memory.of_pairs(form, kind, 70, 16, torch.float32, (8, 8), 16 if kind == "distill" else 0)
        loss = make(kind, implementation=form, tile_size=8)
        assert loss.explain(70, 16, torch.float32, "cpu").endswith(f"; {stated}")


def test_chunks_of_images_bound_what_is_stated():
    stated = memory.of_pairs("streamed", "siglip", 5, 3, torch.float32, (2, 4))
    loss = SigLipLoss(chunk_size=2, tile_size=4, implementation="streamed")
    assert loss.stated_memory(image_features=torch.zeros(5, 3)) == stated
    assert loss.explain(5, 3, torch.float32, "cpu").endswith(f"; {stated}")
