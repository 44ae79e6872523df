"""What engines that serve Hugging Face's models share: where the files are, the tokenizer, and the choices that their configs decide."""
