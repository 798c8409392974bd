"""The contracts: recipes, Arrow schemas, fingerprints, and the expectations made from them."""
