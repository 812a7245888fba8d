"""What one training step computes: masking, fusion targets and losses; each objective owns its modules."""
