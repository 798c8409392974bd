"""Operators of the kind `generate`: a file an operator."""
