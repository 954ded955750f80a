"""`squidkeeper exporter`: metrics, /healthz and the status page of one gateway."""
