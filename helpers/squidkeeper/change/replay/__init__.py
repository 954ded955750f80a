"""Recorded requests judged by another policy: what an edit would deny, open or change.

The result is for people, for scripts, and for what decides whether a policy may come in
force.
"""
