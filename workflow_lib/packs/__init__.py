"""One job that trains many small runs: each is an attempt in a fork of a process that has imported everything.

The runs keep their leases, workspaces, checkpoints, attempts and failures; their results are in the store, from which
the jobs of the rules hand them out. A run that fails is left to its own job, which reports it or tries it again.

job        what all forks of a pack know
imports    what this process imports, before the first fork and beside the first ones
forks      processes forked from this one, as many at once as it has threads
gpu        one GPU for all runs, as many at once as its memory holds
study      suggestions and trials in forks, one after the other as the window of the study allows
runs       a run in a fork, then its evaluation and its export in another
training   the job: imports, GPU, signals, and the exit codes
"""

from workflow_lib.packs.training import train

__all__ = ["train"]
