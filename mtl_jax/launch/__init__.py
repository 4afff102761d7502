"""How a program starts, joins others, is stopped, and ends. Start with program.py."""
