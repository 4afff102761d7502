"""What this project's figures of speed and memory are measured with: `python -m benchmarks`, from the repository."""
