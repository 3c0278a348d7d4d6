"""What the commands do, from names and folders to results: a module for each."""
