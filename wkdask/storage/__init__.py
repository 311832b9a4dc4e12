"""A mag directory on disk: headers, files, blocks; it knows no dask, threads or views."""
