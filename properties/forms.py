"""Forms: how a target is constructed, called and read, where its contract says otherwise. Imports no torch.

A form is a Python expression over a contract's names, as `target(scale * text @ image.T)`. What a certifier
runs, and what a counterexample holds, is the same generated function.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .names import Held, Holding
from .own.formula import formula, is_own
from .own.kinds import Kind


class Name(NamedTuple):
    """A name that an expression may hold."""

    source: str
    """Its value as Python, in a function that is given a call's tensors and the constructor's arguments."""
    input: str = ""
    """Which of the contract's inputs it is; empty where it is none, or several."""
    held: Holding | None = None
    """What makes the input of it, where it is held in another form: a kind of `oracles.held.HELD`."""


def _given(name: str, held: Holding | None = None) -> Name:
    return Name(f'given["{name}"]', name, held)


def _scale(prefix: str = "") -> dict[str, Name]:
    name = f"{prefix}logit_scale"
    return {
        f"{prefix}scale": _given(name),
        f"{prefix}temperature": _given(name, "inverse"),
        f"{prefix}log_scale": _given(name, "exp"),
        f"{prefix}log_temperature": _given(name, "exp_negative"),
        f"{prefix}bias": _given(f"{prefix}logit_bias"),
    }


_PAIR = {"image": _given("image_features"), "text": _given("text_features"), **_scale()}
_VIEWS = {
    "first": _given("first"),
    "second": _given("second"),
    "temperature": Name('ARGUMENTS["temperature"]'),
    "scale": Name('1 / ARGUMENTS["temperature"]'),
    "log_scale": Name('-math.log(ARGUMENTS["temperature"])'),
    "log_temperature": Name('math.log(ARGUMENTS["temperature"])'),
}
_ROWS = "row_labels({0})"


def _options(*names: str) -> dict[str, Name]:
    return {name: Name(f'ARGUMENTS["{name}"]') for name in names}


_GROUP = "torch.distributed.get_{0}() if torch.distributed.is_initialized() else {1}"
_GATHERS = _options("local_loss", "gather_with_grad", "cache_labels", "convention") | {
    "rank": Name(_GROUP.format("rank", 0)),
    "world_size": Name(_GROUP.format("world_size", 1)),
}
"""What a loss that gathers may be told."""
_CAPTIONS = {"logits": _given("logits"), "labels": _given("labels")}
NAMES: dict[str, dict[str, Name]] = {
    "clip": _PAIR | _GATHERS | {"labels": Name('torch.arange(len(given["image_features"]))')},
    "siglip": _PAIR | _options("dist_impl", "chunk_size"),
    "coca": _PAIR | _CAPTIONS | _GATHERS | _options("clip_loss_weight", "caption_loss_weight", "pad_id"),
    "distill": _PAIR
    | _GATHERS
    | {"dist_image": _given("dist_image_features"), "dist_text": _given("dist_text_features")}
    | _scale("dist_"),
    "infonce": _VIEWS | _GATHERS | {"labels": Name('torch.arange(len(given["first"]))')},
    "ntxent": _VIEWS | _GATHERS | {"labels": Name(_ROWS.format('given["first"]'))},
    "cross_entropy": _CAPTIONS | _options("ignore_index"),
    "linear_cross_entropy": {name: _given(name) for name in ("hidden", "weight", "bias")}
    | {"labels": _given("target")}
    | _options("ignore_index", "reduction", "label_smoothing", "z_loss", "chunk_size"),
}
"""By contract: what an expression may name besides `target`, `torch` and Python's own functions."""


def names_of(contract: str) -> dict[str, Name]:
    """Return what an expression may name, of a formula too, file.py:name, whose names are then in `NAMES`.

    Raises:
        NoFormula: there is no such formula.
    """
    if is_own(contract) and contract not in NAMES:
        found = formula(contract)
        sizes = {name: Name(f'ARGUMENTS["{name}"]') for name in found.sizes_held}
        inputs = {named_in_call(name): _of_kind(name, kind) for name, kind in found.inputs.items()}
        NAMES[contract] = sizes | inputs
    return NAMES[contract]


RESERVED = (
    "target", "torch", "loss", "given", "output_dict", "math", "ARGUMENTS",
    "partial", "call_holding", "in_turn", "row_labels",
)  # fmt: skip
"""Names that mean something in an expression already, or in the function made of it."""


def named_in_call(name: str) -> str:
    """Return the name that an input of a formula has in an expression: `target_` for `target`."""
    return f"{name}_" if name in RESERVED else name


def _of_kind(name: str, kind: Kind) -> Name:
    if not kind.is_tensor:
        return Name(f'ARGUMENTS["{name}"]')
    normalized = f'torch.nn.functional.normalize(given["{name}"], dim=-1)'
    return Name(normalized, name) if getattr(kind, "unit", False) else _given(name)


ALLOWED = ("in_turn", "len", "float", "int", "dict", "list", "tuple", "None", "True", "False")
"""What an expression may name besides: Python's own, and what calls a loss in turn."""
ROWS = ("image_features", "text_features", "dist_image_features", "dist_text_features", "first", "second")
"""Inputs whose rows a loss may normalise."""
HELD = {"scale": "", "temperature": "inverse", "log_scale": "exp", "log_temperature": "exp_negative"}
"""By the name of what is held: what makes a scale of it."""
SOFT: dict[str, Holding] = {"softplus_temperature": "inverse_softplus", "softplus_scale": "softplus"}
"""The same of what only a parameter of a module holds."""
OPTIONS = {
    contract: tuple(
        name for name, one in known.items() if name in _GATHERS or one.source == f'ARGUMENTS["{name}"]'
    )
    for contract, known in NAMES.items()
}
"""By contract: the names of what a function may be told, as a constructor is."""


def holdable(contract: str) -> dict[str, Name]:
    """Return by name what a parameter of a module may hold."""
    known = NAMES[contract]
    if contract in ("infonce", "ntxent"):
        known = known | {name: one for name, one in _scale().items() if name in HELD}
    prefixes = [one for one in ("", "dist_") if f"{one}scale" in known and known[f"{one}scale"].input]
    soft = {
        f"{one}{name}": _given(f"{one}logit_scale", kind) for one in prefixes for name, kind in SOFT.items()
    }
    return known | soft


@dataclass(frozen=True)
class Form:
    """How a target is constructed, called and read; empty where it is as its contract says.

    Args:
        call: an expression of `target` and a contract's names, whose value is the loss: a tensor where the
            contract has one term, else a dict of them or a tuple.
        arguments: of the constructor, each with one of the contract's names, as ("tau", "temperature").
        parameters: of the module, each with one of the contract's names, as ("t_prime", "log_scale").
        constructed: the target is constructed, and what is called is the result.
        rows: the constructor's argument that is told how many rows a rank has.
        total: what it returns is the sum of the contract's terms.
    """

    call: str = ""
    arguments: tuple[tuple[str, str], ...] = ()
    parameters: tuple[tuple[str, str], ...] = ()
    constructed: bool = True
    rows: str = ""
    total: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the target is constructed and called as the contract says."""
        return self == PLAIN

    def names(self) -> tuple[str, ...]:
        """Return which names of the contract it holds."""
        bound = [name for _, name in (*self.arguments, *self.parameters)]
        return tuple(dict.fromkeys([*(names_in(self.call) if self.call else []), *bound]))

    def held(self, contract: str) -> Held:
        """Return which inputs the target takes in another form, and what makes them of it."""
        held = {one.input: one.held for one in self._taken(contract)}
        return tuple((name, kind) for name, kind in held.items() if name and kind)

    def inputs(self, contract: str) -> tuple[str, ...]:
        """Return the contract's inputs that it holds."""
        return tuple(dict.fromkeys(one.input for one in self._taken(contract) if one.input))

    def is_once(self, contract: str) -> bool:
        """Whether no input of the contract is given twice."""
        called = dict.fromkeys([*(names_in(self.call) if self.call else []), *dict(self.arguments).values()])
        given = [input_of(name, contract) for name in (*called, *(name for _, name in self.parameters))]
        given = [one for one in given if one]
        return len(given) == len(set(given))

    def _taken(self, contract: str) -> list[Name]:
        known, held = NAMES[contract], holdable(contract)
        by_parameter = {name for _, name in self.parameters}
        return [
            held[name] if name in by_parameter else known[name]
            for name in self.names()
            if name in known or name in by_parameter
        ]

    def constants(self, contract: str) -> tuple[str, ...]:
        """Return which inputs the constructor gets, as numbers."""
        names = [NAMES[contract][name].input for _, name in self.arguments]
        return tuple(dict.fromkeys(filter(None, names)))


PLAIN = Form()
"""That of a contract."""


def input_of(name: str, contract: str) -> str:
    """Return which input of a contract a name stands for, be it given or held; else nothing."""
    known = holdable(contract)
    return known[name].input if name in known else ""


def names_in(expression: str) -> Iterator[str]:
    """Yield the names that an expression reads, in order.

    Raises:
        SyntaxError: it is no expression.
    """
    tree = ast.parse(expression, mode="eval")
    bound = {one.arg for one in ast.walk(tree) if isinstance(one, ast.arg)}
    reads = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    bound |= {node.id for node in reads if isinstance(node.ctx, ast.Store)}
    for node in sorted(reads, key=lambda node: (node.lineno, node.col_offset)):
        if isinstance(node.ctx, ast.Load) and node.id not in bound:
            yield node.id


def check_call(expression: str, contract: str) -> None:
    """Check an expression that somebody wrote.

    Raises:
        ValueError: it is no expression, calls no `target`, or names what the contract does not have.
    """
    if contract not in NAMES and not is_own(contract):
        raise ValueError(f"the contract {contract} has one form alone: leave it out")
    allowed = names_of(contract)
    expected = f"expected an expression of target, {', '.join(allowed)} and torch"
    try:
        names = list(names_in(expression))
    except SyntaxError as error:
        raise ValueError(f"{expected}, got {expression!r}: {error.msg}") from error
    unknown = [name for name in names if name not in (*allowed, *ALLOWED, "target", "torch")]
    if unknown:
        raise ValueError(f"{expected}; {', '.join(dict.fromkeys(unknown))} in {expression!r} is none")
    if "target" not in names:
        raise ValueError(f"{expected}: {expression!r} does not call the target")
    inputs = [allowed[name].input for name in dict.fromkeys(names) if name in allowed]
    twice = sorted({one for one in inputs if one and inputs.count(one) > 1})
    if twice:
        forms = [name for name in allowed if allowed[name].input == twice[0]]
        raise ValueError(f"expected one of {', '.join(forms)}: all are {twice[0]}, in {expression!r}")


KNOWN_MAPS = "NAME, exp(NAME), 1 / NAME, exp(-NAME), softplus(NAME) or 1 / softplus(NAME)"
"""What a scale may be, of what a parameter holds."""


def read_parameter(text: str, contract: str) -> tuple[str, str]:
    """Read "logit_scale=exp(t_prime)": what a parameter of the module holds.

    Returns:
        Its name, and one of the contract's.

    Raises:
        ValueError: it reads otherwise.
    """
    known = holdable(contract) if contract in NAMES else {}
    left, equals, right = (part.strip() for part in text.partition("="))
    names = {"logit_scale": "scale", "logit_bias": "bias"}
    names |= {f"dist_{long}": f"dist_{short}" for long, short in names.items()}
    name = names.get(left, left)
    scales = [one for one in known if (known[one].source and one.split("dist_")[-1] in HELD) or "bias" in one]
    if not scales:
        raise ValueError(f"the contract {contract} has no scale, temperature or bias, got {text!r}")
    expected = f"expected {' or '.join(scales)} = {KNOWN_MAPS}"
    if not equals or name not in scales:
        raise ValueError(f"{expected}, got {text!r}")
    try:
        tree = ast.parse(right, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{expected}, got {text!r}") from error
    kind, path = _kind_of(tree)
    if path is None or (kind and "bias" in name):
        raise ValueError(f"{expected}, got {text!r}")
    return path, _as_held(name, kind)


def _kind_of(tree: ast.expr) -> tuple[str, str | None]:
    """Return how an expression makes its value of the only name in it, and that name."""
    match tree:
        case ast.Call(func=ast.Name(id="exp"), args=[ast.UnaryOp(op=ast.USub(), operand=inner)], keywords=[]):
            return "exp_negative", _path(inner)
        case ast.Call(func=ast.Name(id="exp"), args=[inner], keywords=[]):
            return "exp", _path(inner)
        case ast.Call(func=ast.Name(id="softplus"), args=[inner], keywords=[]):
            return "softplus", _path(inner)
        case ast.BinOp(
            left=ast.Constant(value=1 | 1.0),
            op=ast.Div(),
            right=ast.Call(func=ast.Name(id="softplus"), args=[inner], keywords=[]),
        ):
            return "inverse_softplus", _path(inner)
        case ast.BinOp(left=ast.Constant(value=1 | 1.0), op=ast.Div(), right=inner):
            return "inverse", _path(inner)
    return "", _path(tree)


def _path(tree: ast.expr) -> str | None:
    if isinstance(tree, ast.Name):
        return tree.id
    if isinstance(tree, ast.Attribute) and (owner := _path(tree.value)):
        return f"{owner}.{tree.attr}"
    return None


INVERTED = {
    "": "inverse", "exp": "exp_negative", "inverse": "", "exp_negative": "exp",
    "softplus": "inverse_softplus", "inverse_softplus": "softplus",
}  # fmt: skip
"""What makes the inverse, by what makes the value."""


def _as_held(name: str, kind: str) -> str:
    """Return the name of what is held, where `name` is made of it by `kind`."""
    prefix = "dist_" if name.startswith("dist_") else ""
    short = name.removeprefix(prefix)
    if short == "bias":
        return name
    made = INVERTED[kind] if short == "temperature" else kind
    if short in ("log_scale", "log_temperature"):
        made = HELD[short] if not kind else ""
    return prefix + next(one for one, how in (HELD | SOFT).items() if how == made)


def source(form: Form, contract: str, unit: bool = False) -> str:
    """Return the function `call_form`, which calls a loss, as Python.

    Args:
        form: one with a call.
        contract: whose names it holds.
        unit: rows are normalised before they are given.
    """
    known = NAMES[contract]
    lines = []
    for name in dict.fromkeys(names_in(form.call)):
        if name in known:
            value = known[name].source
            if unit and known[name].input in ROWS:
                value = f"torch.nn.functional.normalize({value}, dim=-1)"
            lines.append(f"{name} = {value}")
    if form.parameters:
        held = ", ".join(f'"{path}": {holdable(contract)[name].source}' for path, name in form.parameters)
        lines.append(f"target = partial(call_holding, loss, {{{held}}})")
    else:
        lines.append("target = loss")
    body = "\n".join(f"    {line}" for line in [*lines, f"return {form.call}"])
    return f'def call_form(loss, given, output_dict):\n    """Call the loss as its form says."""\n{body}\n'
