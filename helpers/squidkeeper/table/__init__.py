"""The record as a table (floor 6): archived parts and logs, typed, for SQL. DuckDB is imported by calls alone."""
