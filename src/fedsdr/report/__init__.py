"""A run directory in, one self-contained HTML page out. Reads nothing but the run directory; needs
neither torch nor a network."""
