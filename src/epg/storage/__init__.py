"""Files: written whole or not at all, hashed, sealed, locked; and the Hub."""
