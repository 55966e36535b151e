"""The name of `workflow_lib.data` in version 0.1, for plugins that were written for it; version 0.3 removes it."""

import warnings

from workflow_lib.data import *  # noqa: F403

warnings.warn("workflow_lib.shards is now workflow_lib.data; version 0.3 removes the old name", DeprecationWarning, 2)
