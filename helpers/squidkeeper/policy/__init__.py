"""A policy: from its text to a decision, and its files on disk."""
