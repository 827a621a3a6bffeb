"""What networks, training and sampling cost, by arithmetic from a configuration: nothing here needs torch."""
