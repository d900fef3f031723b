"""How important a neuron or a weight is: gradients of gates, and what to remove for a target."""
