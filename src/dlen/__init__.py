"""dlen: multi-task ranking experiments around the Deep Latent Emotion Network."""

__version__ = "0.2.0"
