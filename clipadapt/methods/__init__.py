"""One file a method, and nothing else."""
