"""Images in other formats, into WKW and out of it."""
