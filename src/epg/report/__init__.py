"""`epg report`: what the files of runs tell, as one page that needs nothing else."""
