"""Shards to batches: stored samples, the order they are read in, and the views that models take of them."""
