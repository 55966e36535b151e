"""What touches the machine: processes, devices, threads, random generators, locks, logs."""
