"""Volumes made from volumes, file by file: mags from mags, other blocks, copies."""
