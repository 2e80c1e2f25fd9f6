"""`python -m gpualloc`: the command, also where its script is not on PATH."""

from gpualloc.cli.app import main

main()
