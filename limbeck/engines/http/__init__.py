"""What a teacher behind an OpenAI-compatible server takes: asking, pacing, reading, failing."""
