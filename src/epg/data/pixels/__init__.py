"""From an encoded file to the pixels that are trained on."""
