"""Datasets, layers and mags, and what is done to them as a whole."""
