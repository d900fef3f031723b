"""``python -m demp.sweep THREADS``: a worker."""

import sys

from demp.sweep.worker import main

sys.exit(main(int(sys.argv[1])))
