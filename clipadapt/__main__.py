"""`python -m clipadapt` is the command `clipadapt`."""

from clipadapt.app.cli import main

if __name__ == "__main__":
    main(prog_name="python -m clipadapt")
