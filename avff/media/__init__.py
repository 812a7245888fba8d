"""Raw media in, clips out: decoding by time stamps, faces and tracks, crops, encoding, generated data."""
