"""Models as files that run without torch: ONNX, OpenVINO and torch.export programs, verified and quantised."""
