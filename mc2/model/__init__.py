"""The two towers and their loss. Plain torch: nothing of mc2 outside this package is imported."""
