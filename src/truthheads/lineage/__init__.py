"""Is one model made from another? Compare scores and weights."""
