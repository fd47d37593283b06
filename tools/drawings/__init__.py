"""The drawings of the course: one file each, with a function `draw`."""
