"""Engines: exported graphs made ready for one machine, shape and precision, and the cache that keeps them."""
