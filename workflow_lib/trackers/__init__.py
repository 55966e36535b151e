"""Tools that learning curves can be copied to, one file each; the file's name is the one in `tracking.to`."""
