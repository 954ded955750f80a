"""`python -m squidkeeper` is the program `squidkeeper`."""

from squidkeeper.cli import main

main(prog_name="squidkeeper")
