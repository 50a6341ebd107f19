"""Studies of a trained run, one module each: what the papers' figures show, with numbers beside."""
