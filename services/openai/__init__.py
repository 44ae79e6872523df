"""The wire dialect of OpenAI as pure functions: decode, validate, encode, frame."""
