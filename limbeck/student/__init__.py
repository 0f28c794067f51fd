"""The student while it trains: what it writes, and how good that is.

A layer of its own between parts and stages: writing needs an engine, judging a verifier, and both
the weights that train.
"""
