"""SLURM: its commands and variables are known here, and otherwise only to the test whether an owner lives."""
