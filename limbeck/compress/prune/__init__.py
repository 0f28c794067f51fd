"""Ways of pruning, one a file: `prune_weight` for single weights, `prune_model` for whole units."""
