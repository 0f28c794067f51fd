"""Evaluations without a recipe: one is written for models and benchmarks, or read from a manifest.

`subjects` finds out what a model is and how it is reached, `packages` what is not installed,
`shortcut` writes the recipe, `again` repeats an evaluation from its manifest.
"""
