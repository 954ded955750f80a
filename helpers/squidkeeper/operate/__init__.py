"""Installing, examining and running a gateway."""
