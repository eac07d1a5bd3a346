"""Checkpoints of Hugging Face transformers and PEFT."""
