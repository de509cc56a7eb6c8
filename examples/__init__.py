"""Networks that do not look at pictures, with real weights: sound, text, source code."""
