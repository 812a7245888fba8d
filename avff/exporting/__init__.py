"""Weights out: files, averages, model folders with a card, graphs for other runtimes, and the portable detector."""
