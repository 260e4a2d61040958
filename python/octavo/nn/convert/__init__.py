"""Which layers of a model become int8, and how."""
