"""The speech encoder that several families share, and its weights."""
