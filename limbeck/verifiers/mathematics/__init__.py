"""Final answers of mathematics, read and compared: what the verifier `math` stands on.

From text to `tokens`, to `trees`; `forms` compares these, by `values`, `equations`, `regions` and
`units`; `statements` finds an answer that is in no box.
"""
