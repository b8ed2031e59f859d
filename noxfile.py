"""Every Python with every torch, a session each: `make matrix`, or `nox -s "verify-3.11(torch='2.13.0')"`.

PyPI's builds of torch for Linux on x86-64 are for CUDA, and take gigabytes. Give nox an index of CPU builds
where there is one: PIP_INDEX_URL, or PIP_FIND_LINKS with PIP_NO_INDEX=1.

Tried so far: the session of Python 3.11 with torch 2.13.0 (CPU), with two files of tests; outside nox,
Python 3.12 with torch 2.11.0 (built for CUDA, on a machine without a GPU): the tests of losses and oracles,
and a certificate of two losses. Not tried: torch 2.12.1, Python 3.12 with 2.13.0, Python 3.13 and 3.14.
PyPI has wheels of the three builds for the four versions, for CUDA; an index of CPU builds was not in
reach.
"""

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = False

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
TORCHES = ["2.11.0", "2.12.1", "2.13.0"]
TESTS = ["tests/test_losses.py", "tests/test_oracles.py", "tests/test_packaging.py", "tests/test_certify.py"]


@nox.session(python=PYTHONS)
@nox.parametrize("torch", TORCHES)
def verify(session: nox.Session, torch: str) -> None:
    """Certify the shipped losses, and run the tests that a build of torch or Python may break."""
    session.install(f"torch=={torch}")
    session.install("--editable", ".[test]")
    session.env["OMP_NUM_THREADS"] = "1"
    record = f"build/matrix/{session.python}-{torch}.json"
    session.run("verified-losses", "certify", "--max-examples", "10", "--json", record)
    session.run("python", "-m", "pytest", "-q", *(session.posargs or TESTS))
