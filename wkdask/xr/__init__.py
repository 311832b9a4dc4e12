"""The engine `wkw` of xarray, and `array.wkw`."""
