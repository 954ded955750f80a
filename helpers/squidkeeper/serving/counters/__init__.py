"""Counters of helper processes on disk, which one exporter reads.

Each helper process locks one of the counter files `slot-00` to `slot-767` of a folder
and continues its counts. The kernel releases the lock however the process ends. So no
count goes back, and there are never more files than helpers that ran at once. A counter
file has a fixed size and three parts, each written in place:

    header and status   the format, and the heartbeat of the process, with a checksum
    values              an array of doubles, written whole after each batch of replies
    keys                a line `["metric", {"label": "value"}]` for each value, in the
                        same order, append-only

Nothing is mapped into memory (on a full disk that means SIGBUS), and nothing is synced:
a power cut can lose the last counts. A killed process loses at most what `add` has not
received yet. A key is written before its first value. A value without a key is not
counted, and a torn key is overwritten.

A file with another format (torn, truncated, overwritten, of another release) is created
again by the helper that takes it. Its content is lost, and its `identity` changes.
`Totals` adds the files up and remembers the last values of lost files. If there are
more helpers than files, some are not counted, and log it. An error of the disk stops
the writing for as long as it lasts. The counting code never sees it.
"""
