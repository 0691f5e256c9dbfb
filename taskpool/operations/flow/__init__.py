"""How work is organised: workflows, and what belongs to them."""
