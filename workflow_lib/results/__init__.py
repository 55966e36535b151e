"""Everything in results/: each file is a statement, or is described by one."""
