"""The chain of an archive: which parts an archive has, in which order, signed so that a
change is found.

`archive/` writes entries, `table/` reads them, `squidkeeper archive verify` checks
them.
"""
