"""The embedded real data set, its benchmarks, and the whole flow on them in one command."""
