"""The training of one run: `trainer` is the loop, `passes` a step, `state` what changes, `snapshot` what is saved."""
