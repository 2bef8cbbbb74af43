"""What all tests share."""

from __future__ import annotations

import os

# Before torch is imported. A thread that waits by spinning takes a core from the tests or ranks beside it; on arrays as
# small as ours it waits most of the time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # there are as many workers as cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
