"""The Kubernetes operator: KVCachePools and InferenceDeployments become running cache nodes, engines, routers and an index."""
