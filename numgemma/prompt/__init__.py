"""What enters the model: text, chat, pictures, sound and clips, as arrays."""
