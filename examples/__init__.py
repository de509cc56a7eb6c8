"""Networks with real weights for other inputs than pictures: sound, text, source code."""
