# verified-losses counterexample 2d27400c845f
"""liger-float64: "terms equal the oracle" does not hold in one process (cross_entropy).

Falsified: rank 0, loss: expected 0.546541889, observed 0.546541906, error 1.7e-08 is 5.66e+06 times
its bound

    python liger-float64-terms-equal-the-oracle-2d27400c845f.py

runs it again, with torch and NumPy alone. Exit status: 1 while the bug is there, 0 once it is
gone, 2 where it cannot run. VERIFIED_LOSSES_TARGET in the environment names another implementation to run.
"""

from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.machinery import PathFinder
from numpy.typing import NDArray
from pathlib import Path
from torch import tensor
from types import ModuleType
from typing import Any
from typing import NoReturn
import ast
import contextlib
import faulthandler
import functools
import importlib.util
import inspect
import numpy as np
import os
import sys
import sysconfig
import torch
import traceback

TARGET = os.environ.get("VERIFIED_LOSSES_TARGET", "peers/adapters/liger_kernel.py:LigerCrossEntropyLoss")
HOME = "../.."  # from the folder of this file to the one that it was written from
ARGUMENTS = {"ignore_index": 0}
WORLD_SIZE = 1
TERMS = ("loss",)
SECONDS = 60  # how long it may run
WHERE = "rank 0, loss"
RANK = 0
KIND = "term"
NAME = "loss"
INDEX = ()
ALONG = None  # or a direction, instead of one element
BOUND = 3.004e-15  # how far rounding may take a right implementation, derived for these inputs


def inputs():
    """Return what each rank is given."""
    return [
        {
            "logits": tensor(
                [[-0.2802535553958334, 0.51640104767057], [0.6173147913528491, 0.6291496895425023],
                 [-0.4249558694190025, -1.3614865034073644],
                 [-1.3922354860852997, 1.3854603351339416],
                 [-1.0291542168222179, 0.5215796227545516],
                 [-0.5824877649187601, -0.5960085143286955]]
            , dtype=torch.float64).requires_grad_(),
            "labels": tensor([1, 1, 1, 1, 1, 1]),
        },
    ]


def act(target, rank):
    """Return what a rank sees."""
    calls = [
        called(target, rank, inputs, output_dict=False),
    ]
    return run_each(calls)


# What the ranks do.


def _unwrapped(target: Any) -> Any:
    """Return what a decorator with functools.wraps, or functools.partial, was given."""
    while True:
        inner = target.func if isinstance(target, functools.partial) else getattr(target, "__wrapped__", None)
        if not callable(inner):
            return target
        target = inner


def accepted(
    target: Any, arguments: dict[str, Any], optional: tuple[str, ...] = ("convention", "chunk_size")
) -> dict[str, Any]:
    """Return those of `arguments` that `target` takes."""
    if getattr(_unwrapped(target), "__init__", None) is torch.nn.Module.__init__:
        return {}  # its signature takes all, and it refuses each
    inner = _unwrapped(target)
    is_class = inspect.isclass(inner)
    owner = inner if is_class else type(getattr(inner, "__self__", inner))
    method = "__init__" if is_class else getattr(inner, "__name__", "__call__")
    classes = [base for base in owner.__mro__ if base not in (object, torch.nn.Module)]
    named: set[str] = set()
    for function in [target, *(getattr(base, method) for base in classes if method in vars(base))]:
        parameters = inspect.signature(function).parameters
        named.update(parameters)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return {name: value for name, value in arguments.items() if name in named}
    return {name: value for name, value in arguments.items() if name in named or name not in optional}


def construct(target: Any, arguments: dict[str, Any], rank: int, world_size: int) -> Any:
    """Construct a loss; arguments that it does not take are left out."""
    return target(**accepted(target, {**arguments, "rank": rank, "world_size": world_size}))


def call_in_order(loss: Any, given: dict[str, Any], output_dict: bool) -> Any:
    """Call a loss with tensors in order; its parameters may have any names."""
    return loss(*given.values())


@dataclass(frozen=True)
class Call:
    """One call of a loss on one rank, and its backward."""

    build: Callable[[], Any]
    """Constructs the loss."""
    call: Callable[[Any, dict[str, torch.Tensor]], Any]
    """Calls it."""
    given: Callable[[], dict[str, torch.Tensor]]
    """Makes the leaf tensors that it is called with."""
    cotangent: Callable[[str, torch.Tensor], torch.Tensor]
    """Makes what backward gets for a term."""
    terms: tuple[str, ...]
    rank: int
    mode: str = "train"


def called(
    target: Any,
    rank: int,
    inputs: Callable[[], list[dict[str, torch.Tensor]]],
    cotangents: list[dict[str, Any]] | None = None,
    mode: str = "train",
    output_dict: bool = True,
    layout: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.contiguous,
    world_size: int = WORLD_SIZE,
    arguments: dict[str, Any] = ARGUMENTS,
) -> Call:
    """Return a call of `target`; what backward gets is ones unless told."""

    def cotangent(name: str, term: torch.Tensor) -> torch.Tensor:
        if cotangents is None:
            return layout(torch.ones(term.shape, dtype=term.dtype, device=term.device))
        return layout(torch.tensor(cotangents[rank][name], dtype=torch.float64).to(term.device, term.dtype))

    return Call(
        lambda: build(target, arguments, rank, world_size),
        lambda loss, given: call(loss, given, output_dict),
        lambda: inputs()[rank],
        cotangent,
        TERMS,
        rank,
        mode,
    )


Array = NDArray[Any]


@dataclass
class Outcome:
    """What one rank saw of one call."""

    structure: str
    """"dict", "tuple" or "Tensor", and the terms' names where it is a dict."""
    terms: dict[str, Array]
    term_types: dict[str, str]
    """Dtype and device of each term."""
    gradients: dict[str, Array | None] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    """Inputs whose content the call altered, and cotangents whose content its backward did."""
    refused: str = ""
    """Why there is nothing to see: the target does not take part, which is no defect."""

    @property
    def types(self) -> list[str]:
        """The dtypes and devices that there are among the terms."""
        return sorted(set(self.term_types.values()))


class Malformed(AssertionError):
    """The subject returned something that is not what its contract says."""


def autocast(mode: str) -> contextlib.AbstractContextManager[object]:
    """Return the context of a mode, which may be that of autocast to some dtype."""
    dtype = mode.removeprefix("autocast ")
    return contextlib.nullcontext() if dtype == mode else torch.autocast("cpu", getattr(torch, dtype))


def backward(one: Call, terms: dict[str, torch.Tensor], keep: bool = False) -> list[str]:
    """Run backward from all terms together, each with its cotangent; return whose it altered."""
    live = {name: term for name, term in terms.items() if term.requires_grad}
    cotangents = {name: one.cotangent(name, term) for name, term in live.items()}
    before = {name: value.clone() for name, value in cotangents.items()}
    if live:
        torch.autograd.backward(list(live.values()), list(cotangents.values()), retain_graph=keep)
    return [name for name, value in cotangents.items() if not torch.equal(value, before[name])]


def read(output: Any, names: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Return how the output is structured, and its terms by name."""
    if isinstance(output, dict):
        return f"dict {sorted(output)}", {k: v for k, v in output.items() if k in names}
    if isinstance(output, tuple | list):
        return f"tuple of {len(output)}", dict(zip(names, output, strict=False))
    return type(output).__name__, {names[0]: output}


def to_array(value: torch.Tensor) -> Array:
    """Return the values as float64, wherever the tensor is."""
    return value.detach().double().cpu().numpy()


def run(one: Call, loss: Any, given: dict[str, torch.Tensor]) -> Outcome:
    """Call the loss and derive it; return what is seen."""
    if one.mode == "compiled":
        torch.compiler.reset()  # else, after a few cases, it compiles no more and runs what is eager
        loss = torch.compile(loss, backend="aot_eager")
    before = {name: value.detach().clone() for name, value in given.items()}
    with torch.inference_mode(one.mode == "inference"), autocast(one.mode):
        structure, terms = read(one.call(loss, given), one.terms)
    for name, term in terms.items():
        if not isinstance(term, torch.Tensor):
            raise Malformed(f"{name}: expected a torch.Tensor, got {type(term).__name__} {term!r}")
    outcome = Outcome(
        structure,
        {name: to_array(term) for name, term in terms.items()},
        {name: f"{term.dtype} {term.device}".removeprefix("torch.") for name, term in terms.items()},
    )
    altered: list[str] = []
    if one.mode != "inference":
        if one.mode == "derived again":
            backward(one, terms, keep=True)
            for value in given.values():
                value.grad = None
        altered = backward(one, terms)
        for name, value in given.items():
            if value.is_floating_point():
                outcome.gradients[name] = None if value.grad is None else to_array(value.grad)
    outcome.changed = (
        *(name for name, value in given.items() if not torch.equal(value.detach(), before[name])),
        *(f"the cotangent of {name}" for name in altered),
    )
    return outcome


def run_each(calls: list[Call]) -> list[Outcome]:
    """Run each call on an object of its own."""
    return [run(one, one.build(), one.given()) for one in calls]


# How it is judged.


def agree(expected: Any, observed: Any) -> bool:
    """Print both sides; return whether they are as near as rounding allows."""
    expected, observed = float(expected), float(observed)
    error = abs(observed - expected)
    print(WHERE, f"expected {expected!r}", f"observed {observed!r}", sep="\n  ")
    print(f"  error/bound {error:.3g}/{BOUND:.3g}")
    return bool(error <= BOUND)


def component(seen: Array | None) -> float:
    """Return the element, or the sum along a direction, that is compared; no gradient is zero."""
    if seen is None:
        return 0.0
    return float(seen[INDEX] if ALONG is None else np.sum(seen * np.array(ALONG)))


def part(seen: Outcome) -> Array | None:
    """Return the term, or the gradient, that is compared."""
    return (seen.gradients if KIND == "gradient" else seen.terms)[NAME]


def values(ranks: list[dict[str, torch.Tensor]]) -> list[dict[str, Array]]:
    """Return what the ranks are given, as NumPy arrays."""
    return [
        {k: to_array(v) if v.is_floating_point() else v.cpu().numpy() for k, v in given.items()}
        for given in ranks
    ]


def judge_term(target: Any, ranks: list[list[Outcome]]) -> bool:
    """Compare one element of one rank's term, or of the mean over ranks, with the oracle's."""
    terms = [np.asarray(one[NAME]).real for one in oracle(values(inputs()))]
    if RANK is None:
        seen = np.mean([component(part(outcomes[0])) for outcomes in ranks])
        return agree(np.mean([one[INDEX] for one in terms]), seen)
    expected = terms[RANK]
    return agree(expected[INDEX], component(part(ranks[RANK][0])))


# The oracle, in NumPy: derivatives are taken by complex steps, exact to rounding.


def oracle(given):
    """Return every rank's terms; what is given may be complex."""
    logits, labels = (
        [one[name] for one in given] for name in ["logits", "labels"]
    )
    return [
        {
            "loss": cross_entropy_loss(logits[rank], labels[rank], 0),
        }
        for rank in range(len(given))
    ]


def add_up(values: list[Array], counts: list[int]) -> complex:
    """Return the sum of all elements of all values."""
    parts = [np.sum(one) for one in values]
    result: complex = sum(parts[1:], start=parts[0])
    return result


def log_softmax(logits: Array) -> Array:
    """Return log of exp(z_j) / sum_k exp(z_k) along the last axis."""
    # shifted by the largest so that no exponential overflows; the shift cancels, so it may be constant
    shifted = logits - np.max(np.real(logits), axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
    return result


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Return -log softmax(z)_label for each row of [n, c] logits."""
    picked: Array = log_softmax(logits)[np.arange(len(labels)), labels]
    return -picked


def cross_entropy_loss(logits: Array, labels: Array, ignore_index: int) -> complex:
    """Return the mean of [n, c] logits' cross-entropies, at least one of whose [n] labels counts."""
    kept = labels != ignore_index
    tokens = int(np.count_nonzero(kept))
    loss: complex = add_up([cross_entropy(logits[kept], labels[kept])], [tokens]) / tokens
    return loss


# How it is run.


def find_target() -> Any:
    """Return TARGET, seen from the current folder or from the one that this file was written from."""
    place, _, name = TARGET.rpartition(":")
    folders = [Path.cwd(), Path(__file__).resolve().parent / HOME]
    sys.path[:0] = [str(folder.resolve()) for folder in folders]
    if place.endswith(".py"):
        place = str(next((one / place for one in folders if (one / place).exists()), place))
    return getattr(load(place), name)


def verdict(rank: int) -> int:
    """Run one rank; return 0 where the law holds, 1 where it does not, 2 where that cannot be seen."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # a rank that hangs prints its stack
    try:
        target = find_target()
    except BaseException:
        traceback.print_exc()
        return 2
    if not ready(rank):
        return 2
    everyone = gathered(target, rank)
    return 0 if rank > 0 else decide(target, everyone)


MOST_STUBS = 100


class NotInstalled(ImportError):
    """The target uses a package that is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(f"needs {package}, which is not installed", name=package)


def absent_base(package: str) -> type:
    """Return the class that takes the place of a base class of a package: a module without parts."""
    from torch import nn

    class Absent(nn.Module):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if args or kwargs:  # what the real one makes of them is not known
                raise NotInstalled(package)
            super().__init__()

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                if name.startswith("__"):
                    raise
                raise NotInstalled(package) from None

    me = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    vars(Absent)["__init__"].__signature__ = inspect.Signature([me])  # it takes no arguments
    return Absent


class Placeholder:
    """Stands for a name of a package that is not installed."""

    def __init__(self, package: str, name: str) -> None:
        self._package, self._name = package, name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Placeholder(self._package, f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._use()
        decorates = len(args) == 1 and not kwargs and callable(args[0])
        return args[0] if decorates and not isinstance(args[0], Placeholder) else self

    def __getitem__(self, key: Any) -> Any:
        self._use()
        return self

    def __or__(self, other: Any) -> Any:
        return self

    __ror__ = __or__

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (absent_base(self._package),)

    def __instancecheck__(self, instance: Any) -> bool:
        return False  # nobody can have made one

    def __subclasscheck__(self, subclass: Any) -> bool:
        return False

    def __bool__(self) -> bool:
        self._use()
        return False  # what a module asks as it is loaded is whether something is there

    def __iter__(self) -> Iterator[Any]:
        return self._raise()

    def __len__(self) -> int:
        return self._raise()

    def __enter__(self) -> Any:
        return self._raise()

    def __exit__(self, *error: object) -> None:
        self._raise()

    def __repr__(self) -> str:
        return f"<{self._name}, a stub: {self._package} is not installed>"

    def _use(self) -> None:
        if not STUBS.loading:
            self._raise()

    def _raise(self) -> NoReturn:
        raise NotInstalled(self._package)


def gathered(data: Any, gather: Any) -> Any:
    """Apply `gather` to every tensor of a collection."""
    import torch
    from torch.utils._pytree import tree_map

    return tree_map(lambda one: gather(one) if isinstance(one, torch.Tensor) else one, data)


def accelerate() -> dict[str, Any]:
    """Return Accelerator and gather, which concatenates the ranks' tensors, without gradient."""
    import torch
    from torch import distributed as dist

    def gather_one(one: torch.Tensor) -> torch.Tensor:
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return one
        one = one.detach().reshape(1) if one.ndim == 0 else one.detach().contiguous()
        parts = [torch.empty_like(one) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, one)
        return torch.cat(parts)

    def gather(tensor: Any) -> Any:
        return gathered(tensor, gather_one)

    class Accelerator:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.device = torch.device("cpu")

        def gather(self, tensor: Any) -> Any:
            return gather(tensor)

        gather_for_metrics = gather

        @property
        def num_processes(self) -> int:
            return dist.get_world_size() if dist.is_initialized() else 1

        @property
        def process_index(self) -> int:
            return dist.get_rank() if dist.is_initialized() else 0

        @property
        def local_process_index(self) -> int:
            return self.process_index

        @property
        def is_main_process(self) -> bool:
            return self.process_index == 0

    return {
        "Accelerator": Accelerator,
        "PartialState": Accelerator,
        "AcceleratorState": Accelerator,
        "gather": gather,
    }


def lightning() -> dict[str, Any]:
    """Return LightningModule and Fabric: `all_gather` stacks the ranks' tensors in a dimension of its own."""
    import warnings
    from functools import wraps

    import torch
    from torch import distributed as dist
    from torch.distributed.nn import functional

    class Collectives:
        def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
            def gather(one: torch.Tensor) -> torch.Tensor:
                if self.world_size == 1:
                    return one
                with torch.set_grad_enabled(sync_grads and torch.is_grad_enabled()):
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # torch deprecates what the trainer calls
                        parts = functional.all_gather(one.contiguous(), group or dist.group.WORLD)
                    return torch.stack(list(parts))

            return gathered(data, gather)

        @property
        def world_size(self) -> int:
            return dist.get_world_size() if dist.is_initialized() else 1

        @property
        def global_rank(self) -> int:
            return dist.get_rank() if dist.is_initialized() else 0

        @property
        def local_rank(self) -> int:
            return self.global_rank

    class LightningModule(Collectives, torch.nn.Module):
        def log(self, *args: Any, **kwargs: Any) -> None:
            """Without a trainer, nothing is logged."""

        log_dict = log

        def save_hyperparameters(self, *args: Any, **kwargs: Any) -> None:
            """Nothing is saved."""

        @property
        def device(self) -> torch.device:
            tensors = [*self.parameters(), *self.buffers()]
            return tensors[0].device if tensors else torch.device("cpu")

    class Fabric(Collectives):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.device = torch.device("cpu")

        def launch(self, *args: Any, **kwargs: Any) -> None:
            """The ranks run already."""

    def rank_zero_only(function: Any) -> Any:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return None if dist.is_initialized() and dist.get_rank() else function(*args, **kwargs)

        return call

    def say(message: object, stacklevel: int = 4, **kwargs: Any) -> None:
        """Nothing is printed: what a trainer says is not about the loss."""

    said = dict.fromkeys(
        ("rank_zero_warn", "rank_zero_info", "rank_zero_debug", "rank_zero_deprecation"), say
    )
    return {"LightningModule": LightningModule, "Fabric": Fabric, "rank_zero_only": rank_zero_only} | said


@cache
def trainers(package: str) -> dict[str, Any]:
    """Return the stand-ins for a package's names; there are none for most packages."""
    if package in ("lightning", "pytorch_lightning", "lightning_fabric"):
        return lightning()
    return accelerate() if package == "accelerate" else {}


class Stub(ModuleType):
    """A module of a package that is not installed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        package = self.__name__.partition(".")[0] if self.__name__ not in STUBS.names else self.__name__
        known = trainers(package).get(name)
        return Placeholder(package, f"{self.__name__}.{name}") if known is None else known


class Stubs:
    """Finds the modules that are not installed, once they are known to be missing, and those beside a file."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.folders: list[str] = []
        self.loading = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return how a module is made, after every other finder has found nothing."""
        if path is None and self.loading:
            for folder in self.folders:
                if Path(folder, f"{name}.py").is_file() or any(Path(folder, name).glob("*.py")):
                    return PathFinder.find_spec(name, [folder])
        if any(f"{name}.".startswith(f"{missing}.") for missing in self.names):
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return a stub."""
        return Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """A stub holds nothing."""


STUBS = Stubs()


ROOTS = (".git", "pyproject.toml", "setup.py", "setup.cfg")


def above(path: Path) -> list[str]:
    """Return the folders above a file's, as far as the top of its repository."""
    found = []
    for folder in path.parents[:8]:
        found.append(str(folder))
        if any((folder / name).exists() for name in ROOTS):
            return found
    return found[:3]


def import_from(name: str, path: Path, folders: list[str] | None = None) -> ModuleType:
    """Import a file under a name; it is an empty package where there is no file."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    if folders and not path.is_file():
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = folders
    assert spec is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        if spec.loader is not None:
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def import_top(name: str, root: Path) -> str:
    """Import a package of a folder; return its name, which is another where the name is taken."""
    taken, folder = sys.modules.get(name), str(root / name)
    if taken is not None:
        if folder in [str(Path(one).resolve()) for one in getattr(taken, "__path__", [])]:
            return name
        name = f"_subject_{name}_{abs(hash(folder))}"
    import_from(name, Path(folder, "__init__.py"), [folder])
    return name


def package_of(path: Path, levels: int) -> tuple[str, Path]:
    """Return the name of a file as a module, and the folder that its topmost package lies in."""
    root, names = path.parent, [] if path.name == "__init__.py" else [path.stem]
    while levels > 0 or (root / "__init__.py").is_file():
        names.insert(0, root.name)
        root, levels = root.parent, levels - 1
    return ".".join(names), root


def relative_levels(path: Path) -> int:
    """Return how many folders up a file imports from: 0 where it has no relative imports."""
    imports = [one for one in ast.walk(ast.parse(path.read_bytes())) if isinstance(one, ast.ImportFrom)]
    return max((one.level for one in imports), default=0)


def load_file(path: Path) -> ModuleType:
    """Import a file: as a module of its package where it imports relatively, else alone."""
    if not path.is_file():
        raise FileNotFoundError(path)
    path = path.resolve()
    folders = [path.parent]  # as python does: it may import the files beside it
    if Path(path.parent, f"{path.parent.name}.py").is_file():
        folders.insert(0, path.parents[1])  # where a file is named like its package, the package comes first
    sys.path += [one for one in map(str, folders) if one not in sys.path]
    STUBS.folders += [one for one in above(path) if one not in STUBS.folders]
    if levels := relative_levels(path):
        name, root = package_of(path, levels)
        top, dot, rest = name.partition(".")
        return importlib.import_module(import_top(top, root) + dot + rest)
    return import_from(f"_subject_{path.stem}_{abs(hash(str(path)))}", path)


def in_python(file: str) -> bool:
    """Whether a file is of Python's own library."""
    return Path(file).is_relative_to(sysconfig.get_paths()["stdlib"])


def installed_in(file: str) -> str:
    """Return the top-level name of the installed package that a file is of, or nothing."""
    for folder in {sysconfig.get_paths()[one] for one in ("purelib", "platlib")}:
        if Path(file).is_relative_to(folder):
            return Path(file).relative_to(folder).parts[0].removesuffix(".py")
    return ""


def of_target(error: BaseException, place: str) -> bool:
    """Whether an import that failed stands in the target's own code, and not in an installed package."""
    importer, trace = "", error.__traceback__
    while trace:
        code = trace.tb_frame.f_code.co_filename
        if not code.startswith("<frozen") and (installed_in(code) or not in_python(code)):
            importer = code
        trace = trace.tb_next
    own = installed_in(str(Path(place).resolve())) if place.endswith(".py") else place.partition(".")[0]
    return installed_in(importer) in ("", own)


def load(place: str) -> ModuleType:
    """Import a target's module, named or a file; missing packages are stubbed, as they are met."""
    if STUBS not in sys.meta_path:
        sys.meta_path.append(STUBS)
    STUBS.loading = True
    try:
        for _ in range(MOST_STUBS):
            try:
                return load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
            except ModuleNotFoundError as error:
                name = error.name or ""
                itself = not place.endswith(".py") and f"{place}.".startswith(f"{name}.")
                if not name or itself or name in STUBS.names or not of_target(error, place):
                    raise
                STUBS.names.append(name)
        raise ImportError(f"{place}: more than {MOST_STUBS} packages are not installed")
    finally:
        STUBS.loading = False


def by_judge(target: Any, ranks: list[Any]) -> int:
    """Return 0 if the ranks' results agree with the expected ones, else 1."""
    return 0 if judge(target, ranks) else 1


def on_cpu(rank: int) -> bool:
    """The CPU is always there."""
    return True


def alone(target: Any, rank: int) -> list[Any]:
    """Return what the only rank saw."""
    return [act(target, rank)]


load, build, call, judge, decide, ready, gathered = load, construct, call_in_order, judge_term, by_judge, on_cpu, alone

if __name__ == "__main__":
    sys.exit(verdict(0))