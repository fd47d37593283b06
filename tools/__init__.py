"""What the project needs to check, render and describe itself."""
