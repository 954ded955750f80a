"""Squid's configuration, from templates and typed values (floor 5)."""

from squidkeeper.rendering.renderer import fill, part_file, render
from squidkeeper.rendering.values import Values, decode_values, encode_values, merge, values_of

__all__ = ["Values", "decode_values", "encode_values", "fill", "merge", "part_file", "render", "values_of"]
