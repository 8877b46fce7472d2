"""Training: LightningModule, data module, optimisers, callbacks and run folders."""
