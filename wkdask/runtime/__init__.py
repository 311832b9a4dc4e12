"""Where tasks run, and what became of them; it knows no xarray and no datasets."""
