"""Builders: from a resource to the manifests of its children. Pure; each manifest is the whole wish of one field manager."""
