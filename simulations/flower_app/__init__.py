"""The federation as a Flower app: `flwr run .` runs the same ServerApp and ClientApp.

Only these thin modules travel in the app bundle; the library itself is installed on each node.
"""
