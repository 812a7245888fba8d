"""Published checkpoints of other projects, read into the names and layout of our networks (AVFF-SPEC §2.7, §3.5)."""
