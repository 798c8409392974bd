"""Operators of the kind `evaluate`: a file an operator."""
