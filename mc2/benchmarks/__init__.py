"""Multilingual benchmarks as callbacks: every image encoded once, all languages scored from the same embeddings, all ranks at work."""
