"""Everything in results/: statements, and files that a statement describes."""
