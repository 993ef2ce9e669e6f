"""From shards to batches: tokenizer, image preprocessing, the stream over shards, the Lightning data module."""
