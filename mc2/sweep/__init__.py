"""Many experiments with several seeds each, one process a run, and what comes out of them with its uncertainty."""
