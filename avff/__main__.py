"""`python -m avff` and `torchrun ... -m avff` are the same command line as `avff`."""

from avff.cli import run

if __name__ == "__main__":
    run()
