"""``python -m demp``: the command line where no ``demp`` is on the path."""

import sys

from demp.cli import main

if __name__ == "__main__":
    sys.exit(main())
