"""Models: one file each, `Params` and `build(params, spec) -> torch.nn.Module`."""
