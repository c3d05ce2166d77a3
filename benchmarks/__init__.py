"""Speed, guarded against bare vLLM in the same run. Ratios only: absolute figures belong to one machine."""
