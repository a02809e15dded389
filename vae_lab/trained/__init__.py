"""A run folder, perhaps a stranger's, to a model, pictures and files for other programs."""
