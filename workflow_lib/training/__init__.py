"""The training of one run: `loop` is the main path, `state` what a checkpoint keeps; the others are its parts."""
