"""Fuzzing: odd inputs from a fixed seed; only the documented errors may come out.

    python -m tests.fuzz --inputs 20000 --seed 0            every target
    python -m tests.fuzz --only images --number 4711     one input again

`make fuzz` runs the first line; `tests/test_fuzz.py` a short version of it.
"""
