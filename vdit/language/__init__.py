"""Language: chat with a model of text and video, whichever machine it runs on; captions that are checked and kept."""
