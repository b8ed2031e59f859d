"""`python -m verified_losses`: says whether what is installed here is what was verified."""

import argparse
import json
import os
import sys

from .certified import ANSWERS, certificate

STATUS = "exit status: " + ", ".join(f"{status} {answer}" for answer, status in ANSWERS.items())


def main() -> int:
    """Print the answer; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m verified_losses",
        description="Say whether the installed losses are those that were verified, in such an environment.",
        epilog=STATUS + ". A wrong argument gives 2, too.",
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="where the tensors will be; looked for, if not given"
    )
    parser.add_argument("--backend", choices=["gloo", "nccl", "horovod"], help="how ranks will talk")
    parser.add_argument("--json", action="store_true", help="print the answer, and the certificate, as JSON")
    arguments = parser.parse_args()
    found = certificate(arguments.device, arguments.backend)
    try:
        print(json.dumps(found._asdict(), indent=1) if arguments.json else found, flush=True)
    except BrokenPipeError:  # who reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ANSWERS[found.answer]


if __name__ == "__main__":
    sys.exit(main())
