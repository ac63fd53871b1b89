"""A run on disk: its record, its checkpoints, its journal and its lock."""
