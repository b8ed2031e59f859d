"""The implementation under test: its target, and the options it is verified with. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from .forms import PLAIN, Form
from .names import CONTRACTS, CONVENTIONS, DTYPES, LOSSES, STRIDES, Features, Held, Scales
from .scripted import signed
from .standalone.interpreter import interpret
from .standalone.loading import STUBS, load, member
from .worlds.specs import Worlds, worlds_of


class Target(NamedTuple):
    """Where an implementation is imported from."""

    place: str
    """A module, package.module, or a file, path/to/file.py."""
    name: str
    """A class or a function of it, or a method: one that constructs, or one that objects are called by."""

    @classmethod
    def of(cls, text: str) -> "Target":
        """Read "package.module:Name" or "path/to/file.py:Name"; a missing part is empty."""
        place, _, name = text.rpartition(":")
        return cls(place, name)

    def __str__(self) -> str:
        return f"{self.place}:{self.name}"

    @property
    def file(self) -> Path | None:
        """The file, where it is one."""
        return Path(self.place) if self.place.endswith(".py") else None


@dataclass(frozen=True)
class Subject:
    """An implementation bound to a contract.

    Args:
        target: "package.module:Name" or "path/to/file.py:Name".
        conventions: which conventions it is held to.
        even: it asks for equally many rows on every rank.
        dtypes: the dtypes of its inputs.
        strides: memory layouts of its inputs.
        cotangent_strides: memory layouts of its cotangents, where a contract draws them.
        options: constructor arguments to pin.
        bias: it takes a logit bias.
        output_dict: it can be asked for a dict.
        features: what it does with rows of features.
        held: inputs that it takes in another form.
        scales: the logit scales that it takes.
        constants: inputs that it takes as tensors of no gradient, or as numbers.
        form: how it is constructed and called.
        defaults: arguments of it, or of its constructor, that nobody gives it, with their defaults.
        single: it computes in float32 what it is given in float64, which is not drawn.
        gathers: its ranks communicate.
        excluded: the kinds of worlds that it is not verified in, and why.
        interpret: its Triton kernels run in Triton's interpreter, on the CPU.
        stubbed: the packages that it imports and that are not installed.
        strict: what it does not support is a defect, and no limit of it.
        empty_ranks: a rank of several may hold no rows.
        large: it is to meet batches of more than 4,096 pairs, which take minutes each.
        inductor: torch.compile's inductor is to compile it, which takes minutes.
        widths: the widths of features that it takes; any, if empty.
        pad_ids: the labels that it takes for padding; any, if empty.
        refuses_one: what it raises for a batch of one row, which is not drawn.
        beside: rows of features lie beside points at which a gradient may have a kink.
        inference: it is called under inference mode, too.
        stated: it does with inputs that nobody should send what docs/inputs.md says.
    """

    target: str
    conventions: tuple[str, ...] = ("exact",)
    even: bool = False
    dtypes: tuple[str, ...] = DTYPES
    strides: tuple[str, ...] = STRIDES
    cotangent_strides: tuple[str, ...] = STRIDES
    options: tuple[tuple[str, Any], ...] = ()
    bias: bool = True
    output_dict: bool = True
    features: Features = ""
    held: Held = ()
    scales: Scales = "positive"
    constants: tuple[str, ...] = ()
    form: Form = PLAIN
    defaults: tuple[tuple[str, str], ...] = ()
    single: bool = False
    gathers: bool = True
    excluded: tuple[tuple[str, str], ...] = ()
    interpret: bool = False
    stubbed: tuple[str, ...] = ()
    strict: bool = False
    large: bool = False
    inductor: bool = False
    empty_ranks: bool = False
    widths: tuple[int, ...] = ()
    pad_ids: tuple[int, ...] = ()
    refuses_one: str = ""
    beside: bool = False
    inference: bool = True
    stated: bool = False

    def width_of(self, wanted: int) -> int:
        """Return the largest width that it takes and that is not beyond another, else the smallest."""
        return max((one for one in self.widths if one <= wanted), default=min(self.widths, default=wanted))

    @property
    def least(self) -> int:
        """The fewest rows of a rank that has some."""
        return 2 if self.refuses_one else 1

    def worlds(self) -> Worlds:
        """Return the worlds of the target, apart from those of any other."""
        return worlds_of(self.target, self.resolve)

    def resolve(self) -> Any:
        """Import the target.

        Raises:
            Unresolved: there is nothing of this name.
            Exception: the target's module raised it as it was imported.
        """
        target = Target.of(self.target)
        if not target.place or not target.name:
            raise Unresolved(f"expected MODULE:NAME or FILE.py:NAME, got {self.target!r}")
        if self.interpret:
            interpret()
        module = _module(target)
        try:
            return signed(member(module, target.name))
        except AttributeError as error:
            raise Unresolved(f"there is no {target.name} in {target.place}") from error


def stubbed() -> tuple[str, ...]:
    """Return the packages that this process has stubs of."""
    return tuple(STUBS.names)


SHIPPED: dict[str, tuple[str, Subject]] = {
    label: (
        loss.contract,
        Subject(
            f"verified_losses:{loss.name}",
            CONVENTIONS if "convention" in CONTRACTS[loss.contract] else ("exact",),
            options=loss.options,
            scales="any",
            strict=True,
            empty_ranks=True,
            stated=True,
        ),
    )
    for label, loss in LOSSES.items()
}
"""The certified losses by name: their contract, and where to import them."""


class Unresolved(Exception):
    """There is no such target; the message names the missing module or attribute."""


def _module(target: Target) -> ModuleType:
    try:
        return load(target.place)
    except FileNotFoundError as error:
        if target.file and not target.file.is_file():
            raise Unresolved(f"there is no file {target.place}") from error
        raise
    except ModuleNotFoundError as error:
        if error.name and not target.file and f"{target.place}.".startswith(f"{error.name}."):
            raise Unresolved(f"there is no module {error.name}") from error
        raise  # the module is there; an import of its own is missing
