"""Training: the LightningModule, its objectives and optimizers, and where the curves go."""
