"""Implementation invariance: networks that compute the same function get the same map, however they are written."""
