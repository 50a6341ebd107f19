"""Processes, meshes and CPU cores: where the arrays are, whatever is computed on them."""
