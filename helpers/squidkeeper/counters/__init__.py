"""Counters of helper processes, on disk, where one exporter reads them all (floor 4).

Each helper process takes one of the files `slot-00` to `slot-63` of a folder, by a lock that the kernel lets go however
the process ends, and counts on from what the slot holds: nothing goes back, and the folder holds as many files as
helpers ever ran at once. A slot has a fixed size and three parts, each written in place:

    header and status   what the slot is, and the sign of life of the process that has it, under a checksum
    values              an array of doubles, written whole after each batch of answers
    keys                a line `["metric", {"label": "value"}]` for each value, in the same order, only ever added to

Nothing is mapped into memory (a full disk would be a SIGBUS) and nothing is synced: a machine that loses its power can
lose what was counted last. A process that is killed loses at most what `add` was not given yet. A key is on disk before
its first value, so that values without a key are not counted, and a torn key is written over.

A file that is no slot of this format (torn, truncated, overwritten, of another release) is begun anew by the helper
that takes it; what it held is lost, and its `identity` is another one. `Totals` adds slots up, and remembers what it
last read of such a one. A machine with more helpers than slots has some that are not counted, and say so.
Any error of the disk ends the writing, for as long as it lasts, and never reaches who counts.
"""

from squidkeeper.counters.layout import (
    COUNTER_FILES,
    FOLDER,
    INFINITY,
    HelperStatus,
    Key,
    Sample,
    histogram_keys,
    key_labels,
    make_key,
)
from squidkeeper.counters.reader import CounterFile, Totals, counter_file_owner, read_counter_files, sample_key
from squidkeeper.counters.writer import CounterWriter

__all__ = [
    "COUNTER_FILES",
    "FOLDER",
    "INFINITY",
    "CounterFile",
    "CounterWriter",
    "HelperStatus",
    "Key",
    "Sample",
    "Totals",
    "counter_file_owner",
    "histogram_keys",
    "key_labels",
    "make_key",
    "read_counter_files",
    "sample_key",
]
