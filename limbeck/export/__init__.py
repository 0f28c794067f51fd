"""What other programs read: a Hugging Face folder, GGUF files, a model card, and the proof."""
