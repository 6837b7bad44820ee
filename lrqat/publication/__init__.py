"""Publishing on the Hugging Face hub: a checkpoint, what was made of it, and a card of both."""
