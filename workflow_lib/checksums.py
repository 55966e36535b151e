"""The name of `workflow_lib.plugins.checksums` in version 0.1, for plugins that were written for it; 0.3 removes it."""

import warnings

from workflow_lib.plugins.checksums import Checksums, checksums

__all__ = ["Checksums", "checksums"]

warnings.warn(
    "workflow_lib.checksums is now workflow_lib.plugins.checksums; version 0.3 removes the old name",
    DeprecationWarning,
    2,
)
