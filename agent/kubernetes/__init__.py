"""The agent on a Kubernetes node: what the API server wants, and the pods that start (docs/kubernetes.md)."""
