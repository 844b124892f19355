"""The whole story on real input: fetch once, train, save, be killed, resume to the same bits."""
