"""Rules that are shipped with the program, one file for each preset and version: `npm@1.yaml`.

A version never changes once it is shipped: another content is another version. tests/policy/test_presets.py has their
hashes.
"""

from squidkeeper.policy.presets.files import parse_preset, preset_location, preset_names, preset_text, read_preset

__all__ = ["parse_preset", "preset_location", "preset_names", "preset_text", "read_preset"]
