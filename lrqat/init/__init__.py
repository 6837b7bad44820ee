"""What training starts from: scales, A and B, and the statistics of inputs behind them."""
