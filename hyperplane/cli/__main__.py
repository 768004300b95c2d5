"""`python -m hyperplane.cli`: the same as the command `hyperplane-nat`."""

from hyperplane.cli.main import main

main()
