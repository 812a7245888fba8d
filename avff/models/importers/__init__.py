"""Published checkpoints of other projects, read into the names and layout of our networks."""
