"""Text and chats as tokens: tokenizers, messages, and the tokens at the beginning and end of a prompt."""
