"""A federation of a small CNN, built as Flower's own PyTorch quickstart is."""
