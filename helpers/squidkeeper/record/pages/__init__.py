"""Parts that the status page and the report share."""
