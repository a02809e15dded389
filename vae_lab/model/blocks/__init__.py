"""The vocabulary of an architecture file: a file for each word, and what their modules are made of."""
