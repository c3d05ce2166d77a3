"""The core of Lethe: targets, detection, decisions and interventions, and the engine that carries them out."""
