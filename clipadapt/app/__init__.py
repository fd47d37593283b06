"""For people who do not write Python here."""
