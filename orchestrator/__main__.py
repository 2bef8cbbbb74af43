"""`python -m orchestrator` is `tetrarch`."""

from orchestrator.commands.app import main

main()
