"""`python -m workflow_lib` and the script `everstep`."""

import sys


def main() -> int:
    """Hand out what a pack has prepared for this command, or else run it; return the exit code."""
    from workflow_lib import ready

    if ready.hand_out(sys.argv):  # before the command line is imported, which takes ten times as long
        return 0
    from workflow_lib.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
