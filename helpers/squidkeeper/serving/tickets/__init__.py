"""Tickets: questions that wait for a person, numbered, and where they are kept."""
