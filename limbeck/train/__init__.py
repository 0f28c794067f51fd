"""What the training stages share: packing, packed attention, a chunked head, losses, a step.

A loss sees tokens, not sequences. Weights are final before the step, the step sums and never
averages; so packing, accumulation and chunking change nothing, and `tests/numerics` proves it.
"""
