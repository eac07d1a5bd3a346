"""What a program needs and does on a TPU slice that is not there."""
