"""The kill soak: work that is killed, and must end as if nothing had happened.

    python -m tests.soak --kills 90 --seed 0         every job
    python -m tests.soak --only GRIP --kills 20      one of them

A process is killed by SIGKILL at a random moment, and started again in the same folder,
up to six times; then it may finish. What it made must be, bit for bit, what a process
makes that nobody killed, and no draft may be left. `make soak` runs the first line.
"""
