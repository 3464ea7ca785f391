"""Golden model: the integer specification of the unit, in NumPy."""
