"""The command `verified-losses verify-certificate`: by whom the package's certificate is signed."""

import json as json_text
from pathlib import Path
from typing import Any

import verified_losses
from verified_losses import certified

from ..verify.arguments import Unusable
from . import FALSIFIED
from .cli import app

EXTRA = "verified-losses[sign]"


@app.command(name="verify-certificate")
def verify_certificate(file: Path | None = None, *, key: Path) -> int:
    """Check who signed a certificate, and whether what is installed is what it is of.

    Needs the packages of verified-losses[sign]. Exit status: 0 the signature is of this key and of this
    certificate, and the installed source is the certified one; 1 not so, or it is unsigned; 2 something
    cannot be read; 3 the same as 0, in another environment than those that were verified.

    Parameters
    ----------
    file
        A certificate.json, beside which its signature lies in certificate.dsse.json: then the signature alone
        is checked. That of the installed package, if not given.
    key
        The public key, ed25519 in PEM, from a place that you trust: not from the package itself.
    """
    public = read_key(key)
    place = file or Path(verified_losses.__file__).parent / certified.NAME
    beside = place.with_name(certified.ENVELOPE)
    statement = read_json(place, "FILE")
    if not beside.is_file():
        print(f"unsigned: there is no {beside}")
        return FALSIFIED
    why = refused(read_json(beside, "FILE"), statement, public)
    print(why or f"signed by {public.keyid}")
    if why or file:
        return FALSIFIED if why else 0
    found = verified_losses.certificate()
    print(found)
    return certified.ANSWERS[found.answer]


def refused(envelope: dict[str, Any], statement: dict[str, Any], key: Any) -> str:
    """Return why an envelope does not sign a certificate with a key; nothing if it does."""
    from securesystemslib import exceptions
    from securesystemslib.dsse import Envelope

    try:
        signed = Envelope.from_dict(envelope)
    except (AttributeError, KeyError, TypeError, ValueError, exceptions.FormatError) as error:
        return f"{certified.ENVELOPE}: expected a DSSE envelope, got {type(error).__name__}: {error}"
    if signed.payload_type != certified.PAYLOAD_TYPE:
        return (
            f"{certified.ENVELOPE}: expected a payload of {certified.PAYLOAD_TYPE}, got {signed.payload_type}"
        )
    try:
        signed.verify([key], 1)
    except exceptions.VerificationError:
        if key.keyid in signed.signatures:
            return f"not signed by {key.keyid}: the envelope names it, with a signature of something else"
        signers = ", ".join(signed.signatures) or "nobody"
        return f"not signed by {key.keyid}: the envelope names {signers}"
    if signed.payload != certified.canonical(statement):
        return f"the signature is of another {certified.NAME}"
    return ""


def read_key(path: Path) -> Any:
    """Return a public key.

    Raises:
        Unusable: it cannot be read, or a package is missing.
    """
    try:
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
        from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined, unused-ignore]
    except ImportError as error:
        raise Unusable("key", f"needs the packages of {EXTRA}: pip install '{EXTRA}' ({error})") from error
    try:
        return SSlibKey.from_crypto(load_pem_public_key(path.read_bytes()))
    except OSError as error:
        raise Unusable("key", f"cannot read {path}: {error.strerror}") from error
    except (TypeError, ValueError) as error:
        raise Unusable("key", f"expected a public key in PEM, got {path}: {error}") from error


def read_json(path: Path, argument: str) -> dict[str, Any]:
    """Return what a file of JSON holds.

    Raises:
        Unusable: it cannot be read, or holds no object.
    """
    try:
        found = json_text.loads(path.read_bytes())
    except OSError as error:
        raise Unusable(argument, f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise Unusable(argument, f"expected JSON in {path}, got {error}") from error
    if not isinstance(found, dict):
        raise Unusable(argument, f"expected an object of JSON in {path}, got {type(found).__name__}")
    return found
