"""Models as ONNX, OpenVINO and torch.export files, verified and quantised."""
