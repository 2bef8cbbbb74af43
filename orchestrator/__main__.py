"""`python -m orchestrator` is `tetrarch`. A job on a cluster is started so, with the Python of the cluster's nodes."""

import sys

try:
    from orchestrator.commands.app import main
except ModuleNotFoundError as error:
    sys.stderr.write(
        f"error: the Python {sys.executable} lacks the package {error.name}\n"
        "  use the one that `make setup` made, .venv/bin/python; for jobs, start Ray on every node with it first in "
        "PATH: PATH=$PWD/.venv/bin:$PATH ray start …\n"
    )
    sys.exit(2)

main()
