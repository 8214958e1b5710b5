"""What README.md and docs/ say: code runs, configurations load, commands and names exist."""
