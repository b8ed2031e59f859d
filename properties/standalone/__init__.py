"""What ranks do and how it is judged, with torch and NumPy alone: laws call it, counterexamples quote it."""
