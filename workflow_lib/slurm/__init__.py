"""SLURM: the job of a process, its nodes, the cluster, and requests. Elsewhere, only `store.lease` calls it."""
