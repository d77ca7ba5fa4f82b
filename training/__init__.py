"""How the embedded emoji-flux model was made: data, latents, autoencoder, text encoders, transformer, export."""
