"""Several methods under equal conditions: their runs side by side, and what follows from them."""
