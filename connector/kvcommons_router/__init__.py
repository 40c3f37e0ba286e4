"""The router: sends each request to the replica that already holds its prefix."""
