"""The gRPC faces: translate, call, translate back."""
