"""The embedded default: from nothing to a small text-to-video model, measured, and a page that shows it."""
