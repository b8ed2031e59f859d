"""Right and defective losses of the kinds beyond open_clip's, one module each, called by names."""
