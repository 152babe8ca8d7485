"""Instruments: what is measured of a trained network, and the statistics of it."""
