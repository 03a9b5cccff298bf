"""Plain PyTorch files that the exporter copies beside a model as they are."""
