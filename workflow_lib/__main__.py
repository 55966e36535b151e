"""`python -m workflow_lib` and the script `everstep`."""

import sys

from workflow_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
