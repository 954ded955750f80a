"""`squidkeeper exporter`: what is counted and seen, as metrics, health and the status page (floor 5)."""
