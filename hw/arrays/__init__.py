"""The two systolic arrays: queries by keys, probabilities by values."""
