"""Many runs as one table: gathered, compared, drawn. Imports no torch."""
