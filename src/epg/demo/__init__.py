"""A page in the browser that draws: `epg demo`."""
