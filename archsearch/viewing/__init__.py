"""What architectures and spaces look like: as trees, drawings and differences, in words."""
