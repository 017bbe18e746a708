"""Training: a plan in which everything is checked first, then the loop with its data, optimizer, checkpoints and validation."""
