"""A policy as helpers read it: one file, which one process writes."""
