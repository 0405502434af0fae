"""WHAT is done with archives: back up, list, verify, restore. `backup` and `restore` are the two recipes."""
