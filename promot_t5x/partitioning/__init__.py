"""Meshes of devices, and which array is where on them."""
