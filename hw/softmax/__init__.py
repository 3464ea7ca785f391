"""Block-local base-2 softmax: dot products to scores, scores to probabilities."""
