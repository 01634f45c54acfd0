"""Training data: Tiny Worlds, drawn on the fly, and folders of images."""
