"""Messages of the Open Inference Protocol, and some of ONNX's, generated from the `.proto` files of this folder."""
