"""A frozen CLIP, and what is kept of it."""
