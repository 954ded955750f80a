"""Tickets (floor 4): questions that wait for a person, numbered, and where they are kept."""
