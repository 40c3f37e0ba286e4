"""Drivers of the stores that nodes share: they do what the native core wants done there."""
