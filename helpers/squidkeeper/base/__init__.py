"""What every area stands on: errors, paths, metrics, Squid as the system sees it."""
