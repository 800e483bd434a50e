"""The bundled checkpoint, the official configs, the settings of their processors: files, no code."""
