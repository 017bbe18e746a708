"""Pure builders: a parsed pipeline in, Kubernetes objects as plain data out. No clock, no API, no randomness."""
