"""Checkpoint + media or shards in; scores out (`avff evaluate`, `avff predict`)."""
