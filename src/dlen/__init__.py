"""dlen: multi-task ranking experiments around the Deep Latent Emotion Network."""

__version__ = "0.1.0"
