"""What is made of a batch on its device: random views, network values."""
