"""What a program needs and does on a TPU slice, without having the slice."""
