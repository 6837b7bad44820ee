"""PEFT adapters (LoRA), merged into the weights that they were trained on.

adapter    one adapter's folder, read
scales     what its products are multiplied with
merging    one or several, added to a model
"""
