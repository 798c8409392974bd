"""Operators that train models: a row a model."""
