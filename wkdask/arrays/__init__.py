"""Volumes as lazy arrays: dask, xarray variables, stores, and the class `View`."""
