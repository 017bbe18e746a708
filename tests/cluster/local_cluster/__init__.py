"""A Kubernetes control plane, with a node if wanted, in the namespaces of one process on this machine."""
