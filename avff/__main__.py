"""`python -m avff` and `torchrun ... -m avff` are the same command line as `avff`."""

import sys

from avff.cli import main

if __name__ == "__main__":
    sys.exit(main())
