"""Measurements of speed and memory, with the baseline beside them."""
