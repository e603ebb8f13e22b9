"""The evaluation of the MP-SL paper (arXiv 2402.00208), computed again from the authors' published profiles."""
