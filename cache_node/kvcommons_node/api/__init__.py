"""Control API v1: HTTP and JSON, described by the OpenAPI document at /openapi.json."""
