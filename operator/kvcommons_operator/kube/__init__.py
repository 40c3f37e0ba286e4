"""The Kubernetes API as the operator uses it: raw JSON over the `kubernetes` client, and nothing that decides."""
