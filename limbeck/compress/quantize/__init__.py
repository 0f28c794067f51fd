"""Ways of quantizing a matrix, one a file: `quantize_weight`."""
