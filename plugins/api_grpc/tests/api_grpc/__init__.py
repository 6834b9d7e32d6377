"""Tests of the gRPC frontend over real connections, against a node that follows a script."""
