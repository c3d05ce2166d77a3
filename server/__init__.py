"""The HTTP application: vLLM's routes behind the gate, the admin API, keys and the command line."""
