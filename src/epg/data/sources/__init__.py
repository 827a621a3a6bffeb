"""Where the encoded images that `epg prepare` reads come from."""
