"""Text on pictures in any script: `fonts` finds a font for each letter, `text` measures and draws."""
