"""Operators of the kind `reinforce`: a file an operator."""
