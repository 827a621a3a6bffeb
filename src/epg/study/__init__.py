"""Studies: a declared grid of runs, executed by any number of processes that share a folder, and its table."""
