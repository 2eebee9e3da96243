"""The lightweight introduction peer: it lets peers find each other and holds no model."""
