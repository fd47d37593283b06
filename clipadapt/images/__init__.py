"""Pictures in, whatever they are: nothing here knows CLIP."""
