"""What `demp study` leaves: ``results/SCALE/STUDY.json``, with its runs in ``.jsonl`` and its figure in ``.svg``.

STUDY.json has ``schema``, ``id``, ``title``, ``section``, ``remark``, ``scale``, ``planned``, ``done``, ``claims``
(``sentence``, ``paper``, ``ours``, ``holds``: true, false, or null where our runs do not say), ``table`` (``headings``,
``rows``, ``notes``) and ``files``, of which a figure lies beside it.
"""

import re

SCHEMA = 1
"""Of STUDY.json."""
RESULTS = "results"
"""The folder of what studies found, unless the user names another."""
SCALES = ("smoke", "cpu", "paper")
"""Seconds on bundled data, to see that all is computed; tens of minutes on real data and two cores; the paper's own."""
NAMES = re.compile(r"fig\d+|table\d+|controls|decoupled|hybrid|lengths|theory")
"""Ids of studies: the package `demp.experiments.studies` needs torch."""
