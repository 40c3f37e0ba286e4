"""The connector: moves KV chunks between an inference engine and the cache node."""
