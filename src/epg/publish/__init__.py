"""What others use: other formats, programs, a model card, the Hub."""
