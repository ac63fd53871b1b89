"""Answer questions over documents far longer than any context window."""
