"""Entry lists per language, from what is installed or given. No torch."""
