"""Perplexity by llama-perplexity's rule, and the text it is measured on."""
