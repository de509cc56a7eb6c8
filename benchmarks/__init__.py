"""Commands that print tables: speed, memory, localisation."""
