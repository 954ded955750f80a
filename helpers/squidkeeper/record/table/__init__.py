"""The record as a table: archived parts and logs, typed, for SQL. DuckDB is imported by
calls alone.
"""
