"""One HTML page about training runs, from what lies in their folders."""
