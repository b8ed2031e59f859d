"""The names that a counterexample gives a value of its own: what it quotes reads them there."""

from collections.abc import Callable
from typing import Any

_function: Any = None

TARGET = ""
HOME = ""
"""From the folder of the file to the one that it was written from."""
ARGUMENTS: dict[str, Any] = {}
WORLD_SIZE = 1
TERMS: tuple[str, ...] = ()
SECONDS = 60
COTANGENTS: Any = None
RANK = 0
KIND = ""
NAME = ""
INDEX: tuple[int, ...] = ()
ALONG: Any = None
WHERE = ""
EXPECTED = 0.0
ALLOWED: list[Any] = []
BOUND = 0.0
IS_SHARED = False
RANK_VARIABLE = "RANK"

inputs: Callable[[], list[dict[str, Any]]] = _function
whole: Callable[[], list[dict[str, Any]]] = _function
act: Callable[[Any, int], Any] = _function
act_alone: Callable[[Any], Any] = _function
oracle: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = _function
judge_with_properties: Callable[[], bool | None] = _function

build: Callable[[Any, dict[str, Any], int, int], Any] = _function
call: Callable[[Any, dict[str, Any], bool], Any] = _function
judge: Callable[[Any, list[Any]], bool] = _function
decide: Callable[[Any, list[Any]], int] = _function
start: Callable[[], tuple[list[str], dict[str, str]]] = _function
gathered: Callable[[Any, int], list[Any]] = _function
