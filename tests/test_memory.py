"""Stated memory: what the functions return is what the table in their module's docstring says."""

import itertools
import re

import pytest
import torch

from tests.test_losses import CLASSES, batch, make
from verified_losses import memory, streamed

NAMES = {"CLIP": "clip", "SigLIP": "siglip", "distillation": "distill"}
SIZES = [(n, d) for n in (0, 1, 3, 7) for d in (1, 4)]
KINDS = ("clip", "siglip", "distill")


def table():
    """Yield form, of what, and the formulas of saved and peak, for each line of the docstring's tables."""
    form = what = ""
    for line in memory.__doc__.splitlines():
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


LINES = {(form, what): (saved, peak) for form, what, saved, peak in table()}


def test_the_table_is_read():
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
    inputs = {
        name: value.to(dtype) if torch.is_tensor(value) else value for name, value in batch(kind).items()
    }
    n, d = inputs["image_features"].shape
    e = inputs["dist_image_features"].shape[1] if kind == "distill" else 0
    for form in ("dense", "streamed"):
        for size in (None, 2):
            tile = (size, size) if size else streamed.TILE
            stated = memory.of_pairs(form, kind, n, d, dtype, tile, e)
            assert make(kind, implementation=form, tile_size=size).stated_memory(**inputs) == stated
    for method in ("get_logits", "get_ground_truth"):
        own = type("Own", (CLASSES[kind],), {method: lambda *_: None})
        found = own(implementation="streamed").stated_memory(**inputs)
        assert found == memory.of_pairs("dense", kind, n, d, dtype, streamed.TILE, e)
    monkeypatch.setattr("verified_losses.implementations.STREAMED_FROM", n)
    assert make(kind).stated_memory(**inputs) == memory.of_pairs(
        "streamed", kind, n, d, dtype, streamed.TILE, e
    )
    halves = {name: value.half() if torch.is_tensor(value) else value for name, value in inputs.items()}
    assert make(kind).stated_memory(**halves) == memory.of_pairs(
        "dense", kind, n, d, torch.float16, streamed.TILE, e
    )


@pytest.mark.parametrize("kind", KINDS)
def test_explanations_state_the_memory_of_the_form(kind):
    for form in ("dense", "streamed"):
        stated = memory.of_pairs(form, kind, 70, 16, torch.float32, (8, 8), 16 if kind == "distill" else 0)
        loss = make(kind, implementation=form, tile_size=8)
        assert loss.explain(70, 16, torch.float32, "cpu").endswith(f"; {stated}")
