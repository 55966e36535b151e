"""Data sets, one file each: `data.name: mine` is `mine.py` here, `data.name: mypackage.mine` is a module of one's own.

    from pydantic import Field
    from workflow_lib.plugins import Section

    class Params(Section):
        noise: float = Field(0.1, ge=0, description="deviation of the noise")     # data.params.noise

    def open_source(params, root):
        import numpy as np
        from workflow_lib.data import from_arrays

        random = np.random.default_rng(0)
        targets = np.arange(900) % 3
        inputs = targets[:, None] + params.noise * random.normal(size=(900, 5))
        return from_arrays(inputs.astype("float32"), targets, classes=["a", "b", "c"])

Data that brings its own splits, comes from files or does not fit the memory gives a `shards.Source` instead: `read` is
asked for a few rows at a time. Splitting, shards, statistics, digests and checks are done for it. Heavy imports belong
inside the function, so that `everstep validate` stays fast. `tests/datasets/contract.py` has the laws to test it by.
"""
