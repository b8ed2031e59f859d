"""Functions that torch.jit.script has made. Imports no torch."""

import inspect
from typing import Any


def signed(function: Any) -> Any:
    """Return a function as it is, with the signature that torch.jit.script's functions do not show."""
    if type(function).__name__ == "ScriptFunction":
        function.__signature__ = inspect.Signature([_parameter(one) for one in function.schema.arguments])
    return function


def _parameter(argument: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY if argument.kwarg_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
    default = argument.default_value if argument.has_default_value() else inspect.Parameter.empty
    return inspect.Parameter(argument.name, kind, default=default)
