"""The embedded demo: a fictitious world, its forget targets, and two small models that were trained on it."""
