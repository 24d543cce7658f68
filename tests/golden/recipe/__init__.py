"""The parts of the fixture recipe; `../make.py` runs them in order."""
