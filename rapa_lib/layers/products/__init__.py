"""The three products of a tiled convolution: operators, their derivatives, and their paths."""
