"""Squid's configuration, from templates and typed values."""

from squidkeeper.serving.rendering.lines import fill, part_file, render
from squidkeeper.serving.rendering.values import (
    Values,
    decode_values,
    encode_values,
    merge,
    values_of,
)

__all__ = [
    "Values",
    "decode_values",
    "encode_values",
    "fill",
    "merge",
    "part_file",
    "render",
    "values_of",
]
