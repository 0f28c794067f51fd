"""A vLLM server: started, asked, and proved to be the one that is wanted."""
