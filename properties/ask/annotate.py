"""The command `verified-losses annotate`: a certificate of a run, beside the lines of a change on GitHub."""

from pathlib import Path

from ..verify.arguments import Unusable
from . import HOLDS
from .cli import app


@app.command
def annotate(path: Path = Path("build/certificate.json")) -> int:
    """Print a certificate as workflow commands, which GitHub shows beside the target's lines.

    Each defect is an error at the line that raised, or where the target is defined; limits and accepted
    findings are notices. It decides nothing: exit status 0, or 2 if there is no certificate to read.

    Parameters
    ----------
    path
        What `certify --json` or `fuzz` wrote. Run it in the folder in which that was run.
    """
    import msgspec

    from ..show.annotations import render
    from ..show.certificate import decode

    try:
        record = decode(path.read_bytes())
    except OSError as error:
        raise Unusable("PATH", f"cannot read {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise Unusable("PATH", f"expected a certificate, got {path}: {error}") from error
    for line in render(record, Path.cwd()):
        print(line)
    return HOLDS
