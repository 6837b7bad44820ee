"""A GGUF file as a base model: read strictly, and written as a Hugging Face folder.

Nothing here trusts that a file was understood. What the exporter would write of the folder
(hyperparameters, tensors, vocabulary) is compared with what the file says, and a key or a tensor
too many is a refusal: llama.cpp computes with it, and the model would be another one.
"""
