"""Token ids: the tokenizer, padding, labels per token."""
