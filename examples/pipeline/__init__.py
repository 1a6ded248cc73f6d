"""A model inside a data pipeline: the engine without a server."""
