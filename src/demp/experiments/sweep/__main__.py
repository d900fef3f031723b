"""``python -m demp.experiments.sweep THREADS PARENT``: a worker of the process with that number."""

import sys

from demp.experiments.sweep.worker import main

sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
