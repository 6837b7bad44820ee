"""What is said of a model where it is published: the card, and the facts that it is made of."""
