"""Meta-transfer learning in JAX."""
