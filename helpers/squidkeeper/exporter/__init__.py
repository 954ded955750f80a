"""`squidkeeper exporter` (floor 7): metrics, /healthz and the status page of one gateway."""
