"""`python -m cluster.cli`: the same as `cloudbilling`."""

from cluster.cli import main

main()
