"""This machine: processes, devices, threads, random generators and locks. Knows no run."""
