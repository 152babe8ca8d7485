"""What the teaching notebooks compute and draw: one analog tile, a choice of tiles, pictures."""
