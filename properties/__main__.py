"""Where the command begins: Ctrl-C is answered from the first import on."""

import sys


def main() -> None:
    """Run the command line, and exit with the status."""
    try:
        if "certify" in sys.argv[1:2]:
            from .worlds import server

            server.start()
        from . import cli  # takes seconds, for torch

        cli.main()
    except KeyboardInterrupt:
        print("interrupted before a check ran", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
