"""The `remote` engine: any server that speaks OpenAI's API, to which requests are passed on."""
