"""Build Horovod against the installed torch, once: print the wheel's path, which is kept in a cache.

    python tools/horovod_wheel.py

It takes make, a C++20 compiler and Python's headers; cmake comes from PyPI. The cache, which only saves time,
is the folder HOROVOD_WHEELS, by default verified-losses in XDG_CACHE_HOME or ~/.cache.
Horovod's last release is older than C++17, which torch's headers have since required, and than cmake 4.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

VERSION = "0.28.1"
SDIST_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
FLAGS = "CMAKE_CXX_FLAGS_RELWITHDEBINFO"
EDITS = (
    (
        "set(CMAKE_CXX_STANDARD 14)",
        "set(CMAKE_CXX_STANDARD 20)",
        ("CMakeLists.txt", "horovod/torch/CMakeLists.txt"),
    ),
    # tests move a few numbers: the build need not be fast, but be over soon
    (
        f'string(REPLACE "-O2" "-O3" {FLAGS} "${{{FLAGS}}}")',
        f'set({FLAGS} "-O0 -DNDEBUG")',
        ("CMakeLists.txt",),
    ),
)
"""Lines, what takes their place, and the files that have them, once."""
COMPILERS = ("c++", "g++", "clang++")
"""Of which cmake takes the first that there is, unless CXX names one."""
PROGRAM = "#include <concepts>\n#include <Python.h>\nstatic_assert(std::integral<int>);\n"
BUILD_SECONDS = 1800
ENVIRONMENT = {
    "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
    "HOROVOD_WITHOUT_MPI": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITH_PYTORCH": "1",
}


def local_version() -> str:
    """Return the version of a wheel for this torch, as in 0.28.1+torch2.13.0.cpu."""
    return "torch" + metadata.version("torch").replace("+", ".")


def cached() -> Path:
    """Return where the wheel for this Python, torch and platform is kept; it need not exist."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("HOROVOD_WHEELS") or caches / "verified-losses")
    python = "cp{}{}".format(*sys.version_info[:2])
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    return folder / f"horovod-{VERSION}+{local_version()}-{python}-{python}-{platform}.whl"


def pip(*arguments: str, environment: dict[str, str] | None = None) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    # pip's standard output is not this program's, which is one path
    subprocess.run(
        command, check=True, timeout=BUILD_SECONDS, stdout=sys.stderr, env=os.environ | (environment or {})
    )


def check_tools() -> None:
    """Try the compiler and the headers, which PyPI does not have, on a program of three lines.

    Raises:
        ValueError: some of it is missing.
    """
    if shutil.which("make") is None:
        raise ValueError("make: expected it on PATH, as Horovod is built with it")
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else [*filter(shutil.which, COMPILERS)]
    if not compilers:
        raise ValueError(
            f"CXX: expected a C++20 compiler, got none, nor any of {', '.join(COMPILERS)} on PATH"
        )
    options = ["-std=c++20", "-fsyntax-only", "-I", sysconfig.get_path("include"), "-x", "c++", "-"]
    command = [*shlex.split(compilers[0]), *options]
    try:
        subprocess.run(command, input=PROGRAM, check=True, text=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(
            f"{compilers[0]}: expected a C++20 compiler and Python's headers (Debian: g++, python3-dev), "
            f"got {error}\n{getattr(error, 'stderr', '')}".rstrip()
        ) from error


def patch(source: Path) -> None:
    """Raise the language standard of a source tree, and have it compiled without optimization.

    Raises:
        ValueError: the lines to change are not just where they were when this was written.
    """
    files = [file for file in source.rglob("CMakeLists.txt") if "third_party" not in file.parts]
    for old, new, names in EDITS:
        found = sorted(str(file.relative_to(source)) for file in files if old in file.read_text())
        if found != sorted(names):
            raise ValueError(f"expected {old} in {sorted(names)}, found it in {found}")
        for name in names:
            text = (source / name).read_text()
            if text.count(old) != 1:
                raise ValueError(f"{name}: expected {old} once, found it {text.count(old)} times")
            (source / name).write_text(text.replace(old, new))


def unpack(folder: Path) -> Path:
    """Download the source and check that it is the one known; return where it lies.

    Raises:
        ValueError: it is another.
    """
    pip("download", "--no-deps", "--no-build-isolation", "--no-binary=horovod", f"--dest={folder}",
        f"horovod=={VERSION}")  # fmt: skip
    archive = folder / f"horovod-{VERSION}.tar.gz"
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != SDIST_SHA256:
        raise ValueError(f"{archive.name}: expected SHA-256 {SDIST_SHA256}, got {digest}")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / f"horovod-{VERSION}"


def build(wheel: Path) -> None:
    """Build the wheel and put it into the cache, whole or not at all.

    Raises:
        ValueError: a tool is missing, the source is another, or what was built has no extension for torch.
        subprocess.CalledProcessError, subprocess.TimeoutExpired: pip or the compiler failed.
    """
    check_tools()
    pip("install", "packaging", "setuptools>=70.1", "cmake>=3.13")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = ENVIRONMENT | {
        "HOROVOD_LOCAL_VERSION": local_version(),
        "MAKEFLAGS": f"-j{os.cpu_count() or 1}",
        "PATH": path,
    }
    with tempfile.TemporaryDirectory(prefix="horovod-") as folder:
        source = unpack(Path(folder))
        patch(source)
        pip("wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", str(source),
            environment=environment)  # fmt: skip
        built = Path(folder) / wheel.name
        if not built.exists():
            found = sorted(file.name for file in Path(folder).glob("*.whl"))
            raise ValueError(f"expected {wheel.name}, got {found}")
        with zipfile.ZipFile(built) as content:
            if not any(name.startswith("horovod/torch/mpi_lib_v2") for name in content.namelist()):
                raise ValueError(f"{wheel.name}: it has no extension for torch")
        wheel.parent.mkdir(parents=True, exist_ok=True)
        partial = wheel.with_suffix(f".{os.getpid()}")
        shutil.copyfile(built, partial)
        partial.rename(wheel)


def main() -> int:
    """Print the wheel's path; return the exit status."""
    wheel = cached()
    if not wheel.exists():
        print(f"building {wheel.name}: this takes minutes", file=sys.stderr)
        try:
            build(wheel)
        except (ValueError, subprocess.SubprocessError) as error:
            print(f"no wheel of Horovod: {error}", file=sys.stderr)
            return 1
    print(wheel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
