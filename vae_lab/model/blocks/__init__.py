"""The words of an architecture file, one file each, and the modules that they build."""
