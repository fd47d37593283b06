"""`python -m clipadapt` is the command `clipadapt`."""

import sys


def main(prog_name: str = "clipadapt") -> None:
    """The command line; the doctor also where libraries cannot be imported."""
    try:
        from clipadapt.app.cli import main
    except Exception as error:  # whatever a broken library raises
        if sys.argv[1:2] == ["doctor"]:
            from clipadapt.app import doctor

            sys.exit(doctor.main(sys.argv[2:]))
        reason = f"{type(error).__name__}: {error}"
        sys.exit(f"Error: {reason}\n`{prog_name} doctor` says how to repair it")
    main(prog_name=prog_name)


if __name__ == "__main__":
    main("python -m clipadapt")
