"""The networks: tokenizer, token predictor, ADDP, and what they are built from."""
