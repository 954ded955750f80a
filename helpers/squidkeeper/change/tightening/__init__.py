"""A policy made narrower: what of it nobody used, and what of each rule.

`usage.py` measures, `narrowing.py` and `findings.py` propose, `proof.py` replays it,
`edits.py` writes it.
"""
