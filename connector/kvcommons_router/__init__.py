"""The router: an OpenAI-compatible proxy that sends each request to the replica that already holds its prefix."""
