"""`python -m workflow_lib` and the script `everstep`."""

import sys

if __name__ == "__main__":
    from workflow_lib import ready

    if ready.hand_out(sys.argv):  # before the command line is imported, which takes ten times as long
        sys.exit(0)
    from workflow_lib.cli import main

    sys.exit(main())
