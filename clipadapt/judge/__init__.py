"""Which method, how good, how sure."""
