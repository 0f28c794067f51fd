"""A decoder-only transformer written for decoding: weights fused, one flat forward, a cache."""
