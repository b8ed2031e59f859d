"""Where the command begins: Ctrl-C is answered from the first import on."""

import os
import signal
import sys
import time
import traceback
from types import FrameType

from .ask import INTERRUPTED, TERMINATED

AGAIN_SECONDS = 0.1


def main() -> None:
    """Run the command line, and exit with the status."""
    begun = time.monotonic()
    sys.unraisablehook = _interrupt_again
    if sys.path[0] == os.getcwd():  # by python -m: a queue.py there would stand in the way of torch
        sys.path.append(sys.path.pop(0))
    received: list[int] = []

    def terminate(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    # as a scheduler's limit or a cancelled job sends it: what was done is written
    signal.signal(signal.SIGTERM, terminate)
    try:
        try:
            from .ask import annotate, cli, fuzz_cli, signature  # noqa: F401  # which add their commands

            cli.main(begun=begun)
        except ModuleNotFoundError as error:
            extra = "verified-losses[verify]"
            print(
                f"verified-losses: needs the packages of {extra}: pip install '{extra}' ({error})",
                file=sys.stderr,
            )
            sys.exit(2)
    except BrokenPipeError:  # who reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python says so as it ends
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        print("interrupted before a check ran", file=sys.stderr)
        sys.exit(TERMINATED if received else INTERRUPTED)
    except SystemExit as ended:
        if received and ended.code == INTERRUPTED:
            sys.exit(TERMINATED)
        raise
    except Exception:
        traceback.print_exc()
        print("verified-losses: the suite itself failed, which says nothing of the target", file=sys.stderr)
        sys.exit(3)


def _interrupt_again(ignored: "sys.UnraisableHookArgs") -> None:
    """Raise a Ctrl-C once more that came where nothing can be raised, as in a callback of the collector."""
    if isinstance(ignored.exc_value, KeyboardInterrupt):
        # An alarm, not a thread that sends it: a signal seen while the main thread waits for Python's lock is
        # answered only after its next call, which may block.
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
    else:
        sys.__unraisablehook__(ignored)


if __name__ == "__main__":
    main()
