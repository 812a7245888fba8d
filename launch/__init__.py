"""What a scheduler has to know: resources, jobs, copies of the code. No training logic; see docs/clusters.md."""
