"""Load, evaluate, draw and export a finished run, whose folder may be untrusted."""
