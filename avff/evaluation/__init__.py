"""Scores and labels in; result rows, summaries, plots and pages out."""
