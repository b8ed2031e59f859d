"""The command `verified-losses list`: contracts, properties and worlds, a line each."""

from collections.abc import Iterator
from pathlib import Path

from .. import kinds
from ..contracts import contracts
from ..laws import laws
from ..names import FORMULAS, STEP
from ..own.formula import Formula, NoFormula
from ..standalone.loading import load
from ..step.laws import laws as step_laws
from ..verify.arguments import Unusable
from ..worlds.table import KINDS

WORLDS = {
    "single": "one process, as 1",
    "processes": "real processes over gloo, as proc:2",
    "simulated": "threads of one process, of which one runs at a time, as sim:2-8",
    "horovod": "processes over Horovod, as hvd:2",
    "nccl": "processes over NCCL, a GPU each, as nccl:2",
    "torchrun": "the processes that torchrun started",
}


def everything() -> Iterator[str]:
    """Yield what there is, a line each, under headings."""
    yield "contracts (--as)"
    yield from _lines({name: _first(one.__doc__) for name, one in contracts().items()})
    yield "contracts of formulas (--as)"
    yield from _lines({name: _first(getattr(kinds, name).__doc__) for name in FORMULAS})
    yield "  file.py:name   one of your own: see @contract"
    yield f"training steps (--as {STEP})"
    yield "  step           make_step(rank, world_size, **options): several ranks equal one process"
    yield "properties (--only, --skip)"
    yield from _lines({law.name: _first(law.check.__doc__) for law in laws()})
    yield f"properties of training steps (--as {STEP}; --only, --skip)"
    yield from _lines({law.name: _first(law.check.__doc__) for law in step_laws()})
    yield "worlds (--world)"
    yield from _lines({name: WORLDS[name] for name in KINDS})


def contracts_of(file: Path) -> Iterator[str]:
    """Yield the contracts of a file, a line each.

    Raises:
        Unusable: it raises as it is imported, or has none.
    """
    try:
        module = load(str(file))
    except NoFormula as error:
        raise Unusable("FILE", f"{file}: {error}") from error
    except Exception as error:
        raise Unusable(
            "FILE", f"{file}: raised {type(error).__name__} as it was imported: {error}"
        ) from error
    found = {f"{file}:{name}": one for name, one in vars(module).items() if isinstance(one, Formula)}
    if not found:
        raise Unusable("FILE", f"{file}: expected a function decorated with @contract, got none")
    yield from _lines(
        {name: f"{_first(one.__doc__)} Of {', '.join(one.inputs)}.".strip() for name, one in found.items()}
    )


def _lines(described: dict[str, str]) -> Iterator[str]:
    widest = max(map(len, described))
    for name, text in described.items():
        yield f"  {name:{widest}}  {text}"


def _first(text: str | None) -> str:
    """Return the first paragraph of a docstring as a line."""
    return " ".join((text or "").strip().partition("\n\n")[0].split())
