"""The archive of the access log: rotated logs as Parquet by UTC day, each of them once,
whatever happens.

`chain/` commits and seals what is written here.
"""

from typing import Final

KEEP_DAYS: Final = 90  # here, as the command line imports nothing that is heavy
