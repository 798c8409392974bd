"""Operators that give each sample a number or a vector."""
