"""Operators that read what others made: samples, or a model."""
