"""Text and chats as tokens: tokenizers, messages, and what stands at the edges of a prompt."""
