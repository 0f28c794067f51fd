"""What runs inside a sandbox, beside a stranger's code. Imports next to nothing, to start quickly.

None of it is trusted once a stranger's code has run: we read its frames as we would any text.
"""
