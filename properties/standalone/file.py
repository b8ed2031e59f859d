"""What a counterexample says itself: `file.RANK` of a function that it quotes is RANK there."""

from typing import Any

ARGUMENTS: dict[str, Any] = {}
TARGET = HOME = WHERE = KIND = NAME = LAW = CONTRACT = WORLD = EXAMPLE = ""
TERMS: tuple[str, ...] = ()
DEVICES: tuple[str, ...] = ()
PRODUCTS: dict[str, bool] = {}
CONVENTIONS: tuple[str, ...] = ()
INDEX: tuple[int, ...] = ()
ALLOWED: list[Any] = []
RANK, WORLD_SIZE, SECONDS, IS_SHARED = 0, 1, 60, False
FORM: dict[str, Any] = {}
EXPECTED = BOUND = 0.0
COTANGENTS: Any = None
ALONG: Any = None

inputs: Any = None
whole = act = act_alone = oracle = build = call = judge = decide = ready = start = gathered = load = inputs

STEP = 0
IS_DUE = False
LOSS_SCALE = 1.0
plan: Any = None
