"""Everything in work/. Only this package writes there, except for checkpoints, shards and frozen settings."""
