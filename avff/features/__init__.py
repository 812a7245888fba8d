"""Features of stored samples by a trained encoder, and probes that measure what they hold (`avff extract`, `avff probe`)."""
