"""The (m)T5 network with a soft prompt, its losses and its decoding."""
