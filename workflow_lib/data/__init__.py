"""Data sets: one file each, `Params` and `open_source(params, root) -> shards.Source`."""
