"""What somebody wearing a smartwatch does, step by step: an LSTM that labels a live series of measurements."""
