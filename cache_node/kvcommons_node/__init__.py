"""The cache node: a daemon around the native core. Control API, Redis membership and publishing, metrics."""
