"""From a raw pool to balanced shards: language identification, matching, balancing, packing. No torch."""
