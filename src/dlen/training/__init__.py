"""LightningModule, data module, optimisers, callbacks and the run folder."""
