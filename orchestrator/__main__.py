"""`python -m orchestrator` is `tetrarch`."""

from orchestrator.cli import main

main()
