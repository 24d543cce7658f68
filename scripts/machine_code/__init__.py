"""What `scripts/sass` and `scripts/check-sass` know of the kernels' machine code.

toolkit.py   nvcc and nvdisasm: found, run with the build's flags, remembered in target/sass-cache
listing.py   a disassembly as instructions with their control codes; its loops, and the path through one that carries the work
sm.py        the cycle model of one SM
rows.py      a kernel entry as a row of docs/sass.tsv
launches.py  a launch: tiles, waves, bytes; and the launches of a picture
limits.py    what docs/sass-limits.tsv allows
judge.py     whether the model is any good
cards.toml   every constant, with its source
"""
