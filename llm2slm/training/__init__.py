"""Training: objective, optimizer, the one LightningModule, loggers, and the fit that joins them."""
