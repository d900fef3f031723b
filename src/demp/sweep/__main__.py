"""``python -m demp.sweep THREADS PARENT``: a worker of the process with that number."""

import sys

from demp.sweep.worker import main

sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
