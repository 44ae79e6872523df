"""The edge: a file control plane for Envoy. Settings and live pods in, Envoy's files out, written by rename.

It sits beside the traffic, never in its way: if it dies, Envoy keeps serving what it has.
"""
