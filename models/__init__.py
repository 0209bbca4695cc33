"""Backbones: layer tables, taps and their aliases, weights, and the torch reference."""
