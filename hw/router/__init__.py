"""Router: keys of chunks, exact top-k selection, and inversion to query lists."""
