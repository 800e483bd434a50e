"""The bundled checkpoint, the official configs, their processors' settings, the course's hints: files, no code."""
