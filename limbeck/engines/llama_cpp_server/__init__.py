"""llama.cpp on a GGUF file, in a process of its own: started, asked, and ended with its owner."""
