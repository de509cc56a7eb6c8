"""Which architectures are explained right."""
