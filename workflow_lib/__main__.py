"""`python -m workflow_lib` and the script `everstep`."""

import gc
import sys


def main() -> int:
    """Hand out what a pack has prepared for this command, or else run it; return the exit code."""
    from workflow_lib import ready

    if ready.hand_out(sys.argv):  # before the command line is imported, which takes ten times as long
        return 0
    from workflow_lib.cli import main as run

    code = run()
    gc.freeze()  # the interpreter's last collection would visit all objects of torch, which takes half a second
    return code


if __name__ == "__main__":
    sys.exit(main())
