"""`avff doctor`: what usually breaks on a cluster, checked on every node before a job is burnt."""
