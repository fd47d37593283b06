"""The tools that every method shares."""
