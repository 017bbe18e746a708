"""What every other room agrees on: attributes, conversations, the one prompt template, errors. No torch, no HTTP."""
