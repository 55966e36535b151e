"""Data sets, one file each: `data.name: mine` is `mine.py` here, `data.name: mypackage.mine` is a user's module.

    from pydantic import Field
    from workflow_lib.plugins import Section

    class Params(Section):
        noise: float = Field(0.1, ge=0, description="standard deviation of the noise")  # data.params.noise

    def open_source(params, root):
        import numpy as np
        from workflow_lib.data import from_arrays

        random = np.random.default_rng(0)
        targets = np.arange(900) % 3
        inputs = targets[:, None] + params.noise * random.normal(size=(900, 5))
        return from_arrays(inputs.astype("float32"), targets, classes=["a", "b", "c"])

For data with splits of its own, from files, or larger than the memory, return a `workflow_lib.data.Source`: its `read`
is called for a few rows at a time. `workflow_lib.data` makes splits, shards, statistics, digests and checks. Put heavy
imports inside the function, so that `everstep validate` stays fast. `tests/datasets/contract.py` tests the
requirements.
"""
