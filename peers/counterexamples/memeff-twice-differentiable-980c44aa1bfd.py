# verified-losses counterexample 980c44aa1bfd
"""memeff: "twice differentiable" does not hold in one process (clip, convention exact).

Falsified: rank 0, second derivative of image_features at [0, 0]: expected 0, observed -0.611454606,
error 0.611 is 1.46e+03 times its bound

    python memeff-twice-differentiable-980c44aa1bfd.py

runs it again, with torch and NumPy alone. Exit status: 1 while the bug is there, 0 once it is
gone, 2 where it cannot run. VERIFIED_LOSSES_TARGET in the environment names another implementation to run.
"""

from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.machinery import PathFinder
from numpy.typing import NDArray
from pathlib import Path
from torch import tensor
from types import ModuleType
from types import SimpleNamespace
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

TARGET = os.environ.get("VERIFIED_LOSSES_TARGET", "build/peers/memeff/clip_loss.py:MemoryEfficientCLIPLoss")
HOME = "../.."  # from the folder of this file to the one that it was written from
ARGUMENTS = {"convention": "exact", "local_loss": False, "gather_with_grad": True, "cache_labels": False, "stable": False, "temperature": 1.0}
WORLD_SIZE = 1
TERMS = ("contrastive_loss",)
SECONDS = 60  # how long it may run
MOVES = [{"image_features": [[-0.44757158, 0.23715194, 1.6814874, -0.67225975, -0.46434733, 0.016106453,
                      -1.5601846, -0.7687513, 0.03350959, -1.5834395, 0.18247412, -1.363916,
                      -0.1565463, -0.44448766, 0.33564177, -0.13628855]],
  "text_features": [[0.6114546, 0.92717665, -0.3471927, 0.9188908, 0.5275539, 0.44877672,
                     -0.6377722, -0.2556375, 0.0017635436, 0.41240525, 1.0990541, 1.3224174,
                     0.09512963, -0.1939105, 0.65413505, 0.6082711]]}]  # how each rank's inputs move
WHERE = "rank 0, second derivative of image_features at [0, 0]"
RANK = 0
NAME = "image_features"
INDEX = (0, 0)
ALONG = None  # or a direction, instead of one element
EXPECTED = 0.0  # what the oracle gives
BOUND = 0.000418  # how far rounding may take a right implementation, derived for these inputs


def inputs():
    """Return what each rank is given."""
    return [
        {
            "image_features": tensor(
                [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]
            , dtype=torch.float32).requires_grad_(),
            "text_features": tensor(
                [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]
            , dtype=torch.float32).requires_grad_(),
            "logit_scale": tensor(1.0, dtype=torch.float32),
        },
    ]


def act(target, rank):
    """Return what a rank sees."""
    calls = [
        called(target, rank, inputs, output_dict=False),
    ]
    return derive_twice(calls, MOVES)


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


def read(output: Any, names: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Return how the output is structured, and its terms by name."""
    if isinstance(output, dict):
        return f"dict {sorted(output)}", {k: v for k, v in output.items() if k in names}
    if isinstance(output, tuple | list):
        return f"tuple of {len(output)}", dict(zip(names, output, strict=False))
    return type(output).__name__, {names[0]: output}


def terms_of(one: Call, loss: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Call the loss; return its terms."""
    return read(one.call(loss, given), one.terms)[1]


def to_array(value: torch.Tensor) -> Array:
    """Return the values as float64, wherever the tensor is."""
    return value.detach().double().cpu().numpy()


def derive_twice(calls: list[Call], moves: list[dict[str, Any]]) -> dict[str, Array]:
    """Return the derivative of the gradient as all ranks' inputs move."""
    given, own = calls[0].given(), moves[calls[0].rank]
    terms = terms_of(calls[0], calls[0].build(), given)
    live = {name: term for name, term in terms.items() if term.requires_grad}
    cotangents = [calls[0].cotangent(name, term) for name, term in live.items()]
    leaves = [given[name] for name in own]
    derived: Any = [torch.zeros_like(leaf) for leaf in leaves]
    gradients: Any = []
    if live and leaves:
        gradients = torch.autograd.grad(
            list(live.values()), leaves, cotangents, create_graph=True, materialize_grads=True
        )
    paired = [
        (gradient, torch.tensor(move, dtype=gradient.dtype, device=gradient.device))
        for gradient, move in zip(gradients, own.values(), strict=False)
        if gradient.requires_grad
    ]
    if paired:
        first, along = zip(*paired, strict=True)
        derived = torch.autograd.grad(first, leaves, along, materialize_grads=True)
    return {name: to_array(value) for name, value in zip(own, derived, strict=True)}


def call_form(loss, given, output_dict):
    """Call the loss as its form says."""
    image = given["image_features"]
    text = given["text_features"]
    target = loss
    return target(image_features=image, text_features=text)


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


def judge_derived_twice(target: Any, ranks: list[dict[str, Array]]) -> bool:
    """Compare one rank's second derivative, or the mean over ranks, with what is expected."""
    chosen = ranks if RANK is None else [ranks[RANK]]
    return agree(EXPECTED, np.mean([component(seen[NAME]) for seen in chosen]))


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


CAPABILITY = (8, 0)


class Driver:
    """The device that Triton asks about; it is never launched on."""

    def get_current_device(self) -> int:
        """Return its number."""
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        """Return the number of its stream."""
        return 0

    def get_active_torch_device(self) -> Any:
        """Return the CPU."""
        import torch

        return torch.device("cpu")

    def get_current_target(self) -> Any:
        """Return what code would be for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], 32)

    def get_benchmarker(self) -> Any:
        """Return what takes no time of anything: the first of several configurations is taken."""
        return lambda kernel, quantiles=None, **settings: [1.0] * len(quantiles or [0.5])

    @property
    def utils(self) -> Any:
        """Return what tells its properties."""
        told = {"max_shared_mem": 166912, "multiprocessor_count": 4, "warpSize": 32, "max_num_regs": 65536}
        return SimpleNamespace(get_device_properties=lambda device=0: told)


def device_properties() -> SimpleNamespace:
    """Return the properties that kernels are tuned by: few processors, so that grids are small."""
    return SimpleNamespace(
        name="Triton's interpreter", major=CAPABILITY[0], minor=CAPABILITY[1], multi_processor_count=4,
        shared_memory_per_multiprocessor=166912, shared_memory_per_block_optin=166912, warp_size=32,
        total_memory=2**33, max_threads_per_multi_processor=2048,
    )


def is_cuda(tensor: Any) -> bool:
    """Whether a target is to take a tensor for one of a GPU; torch and Triton are told the truth."""
    asked_by = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0]
    return tensor.device.type == "cuda" or asked_by not in ("torch", "triton")


def widen_products() -> None:
    """Let the interpreter multiply matrices of bfloat16: it takes their bits for integers (triton 3.9)."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    inner = interpreter.InterpreterBuilder.create_dot

    def widened(matrix: Any) -> Any:
        if matrix.dtype != tl.bfloat16 or matrix.data.dtype != np.uint16:
            return matrix
        bits = np.ascontiguousarray(matrix.data).astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any, **named: Any) -> Any:
        return inner(self, widened(a), widened(b), *rest, **named)

    interpreter.InterpreterBuilder.create_dot = create_dot


def interpret() -> None:
    """Let kernels run in Triton's interpreter, and answer what a target asks of the device."""
    if getattr(sys.modules.get("triton"), "interpreted", False):
        return
    os.environ["TRITON_INTERPRET"] = "1"
    for name in [*sys.modules]:  # it decides as it is imported, and torch may have imported it
        if name.partition(".")[0] == "triton" and not name.startswith("triton._C"):
            del sys.modules[name]
    import torch

    answers = {
        "get_device_capability": lambda device=None: CAPABILITY,
        "get_device_properties": lambda device=None: device_properties(),
        "get_device_name": lambda device=None: "Triton's interpreter",
        "current_device": lambda: 0,
        "synchronize": lambda device=None: None,
        "device": lambda device: contextlib.nullcontext(),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.Tensor.is_cuda = property(is_cuda)
    with contextlib.suppress(ModuleNotFoundError):
        import triton

        triton.interpreted = True
        triton.runtime.driver.set_active(Driver())
        widen_products()


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


def load_interpreted(place: str, inner: Callable[[str], Any] = load) -> Any:
    """Import a module whose Triton kernels are to run in Triton's interpreter."""
    interpret()
    return inner(place)  # a program gives this function the name of the other


def by_judge(target: Any, ranks: list[Any]) -> int:
    """Return 0 if the ranks' results agree with the expected ones, else 1."""
    return 0 if judge(target, ranks) else 1


def on_cpu(rank: int) -> bool:
    """The CPU is always there."""
    return True


def alone(target: Any, rank: int) -> list[Any]:
    """Return what the only rank saw."""
    return [act(target, rank)]


load, build, call, judge, decide, ready, gathered = load_interpreted, construct, call_form, judge_derived_twice, by_judge, on_cpu, alone

if __name__ == "__main__":
    sys.exit(verdict(0))