"""Squid's configuration, from templates and typed values."""

from squidkeeper.configuration.rendering.arrangement import (
    LADDERS,
    PEERS,
    arrange,
    read_lines,
    render,
    without_numbers,
)
from squidkeeper.configuration.rendering.lines import FRAGMENT, expand, fill, part_file
from squidkeeper.configuration.rendering.values import (
    Values,
    decode_values,
    encode_values,
    merge,
    values_of,
)

__all__ = [
    "FRAGMENT",
    "LADDERS",
    "PEERS",
    "Values",
    "arrange",
    "decode_values",
    "encode_values",
    "expand",
    "fill",
    "merge",
    "part_file",
    "read_lines",
    "render",
    "values_of",
    "without_numbers",
]
