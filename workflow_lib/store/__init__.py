"""Everything in work/: only this package writes there, but for checkpoints, shards and frozen settings."""
