"""Where a function is applied to shards: processes of this machine, Ray, a SLURM array."""
