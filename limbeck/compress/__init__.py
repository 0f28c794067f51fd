"""A model made smaller: texts walk through it layer by layer, matrices are pruned or quantized."""

MOST = 0.95
"""What a matrix may lose under a global budget: one that loses nearly all says nothing any more."""
