"""Layers of the networks that are compared in several types and on several devices."""

from __future__ import annotations

LAYERS = {"functional": "first", "transformer_encoder": "encoder.layers.0", "lstm": "lstm"}
