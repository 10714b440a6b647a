"""Small projects in the shape in which people write them, each taking its learning-rate schedule from lit_cosine."""
