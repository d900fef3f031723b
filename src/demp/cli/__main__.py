"""``python -m demp.cli``: the command line for launchers that take a module, such as ``torchrun -m``."""

import sys

from demp.cli import main

if __name__ == "__main__":
    sys.exit(main())
